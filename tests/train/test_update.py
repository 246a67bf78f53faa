from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aer_train import update
from aer_train.batching import micro_batches
from aer_train.config import ModelConfig, ObjectiveConfig, OptimConfig, RolloutConfig, TrainConfig
from aer_train.loss import denominators, measure, policy_loss
from aer_train.model import Policy, load_policy
from aer_train.rollout.hf import HFRollout
from aer_train.types import Batch, Group, Prompt
from aer_train.update import learning_rate, update_policy
from aer_train.verify import Verdict

PROMPTS = [Prompt(str(i), text, "") for i, text in enumerate(["12=?", "7", "345+6=?", "98"])]
CONFIG = TrainConfig(rollout=RolloutConfig(max_new_tokens=6, temperature=0.9), optim=OptimConfig(lr=1e-2, warmup_steps=0, grad_clip=0.05))


@pytest.fixture
def batch(policy: Policy) -> Batch:
    samples = HFRollout(policy, CONFIG.rollout).generate(PROMPTS, 2, (0,))
    advantages = [1.0, -1.0, 0.5, -0.5, 0.0, 0.0, -2.0, 2.0]
    verdicts = [Verdict("wrong", 0.0, None, 0.0)] * 2
    groups = [Group(prompt, samples[2 * i : 2 * i + 2], verdicts) for i, prompt in enumerate(PROMPTS)]
    return Batch(groups, advantages, [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.0, 0.0], [True] * 8)


def optimizer_of(policy: Policy) -> torch.optim.AdamW:
    return torch.optim.AdamW(policy.model.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)


def test_one_update_is_one_clipped_adam_step(policy: Policy, batch: Batch, model_folder: Path) -> None:
    other = load_policy(ModelConfig(name=str(model_folder)), torch.device("cpu"))
    result = update_policy(policy, optimizer_of(policy), batch, CONFIG, step=1)

    (micro,) = micro_batches(
        batch.samples, batch.advantages, batch.entropy_coef, None, tokens_per_microbatch=10**6, pad_id=0, device=other.device
    )
    _, entropy = measure(other, micro, temperature=0.9)
    denominator = denominators(batch.samples, CONFIG.objective, 6)
    loss = policy_loss(other, micro, CONFIG.objective, denominator, temperature=0.9).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(other.model.parameters(), 0.05)
    assert norm > 0.05, "the case must clip"
    optimizer = optimizer_of(other)
    optimizer.param_groups[0]["lr"] = 1e-2
    optimizer.step()
    for a, b in zip(policy.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert result.metrics["policy/loss"] == loss.item() and result.metrics["optim/grad_norm"] == norm.item()
    assert result.metrics["optim/lr"] == 1e-2
    assert result.num_tokens == sum(len(s.tokens) for s in batch.samples)
    assert result.entropy_sum == pytest.approx(entropy.sum().item(), rel=1e-6)


def test_updates_take_equal_shares_of_the_prompts(policy: Policy, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[list[tuple[int, int]]] = []
    seen: list[tuple[float, ...]] = []

    def recording(samples, *args):  # type: ignore[no-untyped-def]
        shares.append([(s.prompt, s.index) for s in samples])
        return denominators(samples, *args)

    def packed(samples, advantages, coef, old, **options):  # type: ignore[no-untyped-def]
        seen.append((*advantages, *coef, len(samples), old is None))
        return micro_batches(samples, advantages, coef, old, **options)

    monkeypatch.setattr(update, "denominators", recording)
    monkeypatch.setattr(update, "micro_batches", packed)
    config = replace(CONFIG, optim=replace(CONFIG.optim, updates_per_step=2))
    result = update_policy(policy, optimizer_of(policy), batch, config, step=1)
    assert shares == [[(0, 0), (0, 1), (1, 0), (1, 1)], [(2, 0), (2, 1), (3, 0), (3, 1)]]
    assert seen == [
        (*batch.advantages, *batch.entropy_coef, 8, True),
        (*batch.advantages[:4], *batch.entropy_coef[:4], 4, False),
        (*batch.advantages[4:], *batch.entropy_coef[4:], 4, False),
    ]
    assert result.metrics["policy/ratio_max"] > 1.01, "the second update is off-policy"


@pytest.mark.parametrize("kind", ["ppo", "cispo", "gspo"])
def test_micro_batches_change_memory_only(policy: Policy, batch: Batch, model_folder: Path, kind: str) -> None:
    other = load_policy(ModelConfig(name=str(model_folder)), torch.device("cpu"))
    objective = ObjectiveConfig(kind=kind, aggregation="sequence_mean")
    config = replace(CONFIG, objective=objective, optim=replace(CONFIG.optim, updates_per_step=2))
    small = replace(config, optim=replace(config.optim, tokens_per_microbatch=1))
    a, b = (update_policy(p, optimizer_of(p), batch, c, step=1) for p, c in ((policy, config), (other, small)))
    assert a.entropy_sum == pytest.approx(b.entropy_sum, rel=1e-6)
    for name, value in a.metrics.items():
        assert value == pytest.approx(b.metrics[name], rel=1e-4, abs=1e-6), name
    assert ("policy/approx_kl" in a.metrics) == (kind != "gspo")


def test_learning_rate_by_hand() -> None:
    constant = OptimConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(constant, u, 10) for u in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    linear = OptimConfig(lr=1.0, warmup_steps=2, schedule="linear")
    assert [learning_rate(linear, u, 6) for u in range(6)] == [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    cosine = OptimConfig(lr=1.0, warmup_steps=0, schedule="cosine")
    assert [learning_rate(cosine, u, 4) for u in range(4)] == pytest.approx([0.8535534, 0.5, 0.1464466, 0.0], abs=1e-7)
