import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from aer_train.config.tree import ModelConfig, ObjectiveConfig, OptimConfig, RolloutConfig, TrainConfig
from aer_train.model import Policy, load_policy
from aer_train.rollout.hf import HFRollout
from aer_train.step import passes, scores
from aer_train.step.batching import Columns, MicroBatch, micro_batches
from aer_train.step.loss import measure, policy_loss
from aer_train.step.objective import make_objective
from aer_train.step.tokens import Weighed
from aer_train.step.update import learning_rate, update_policy
from aer_train.types import Group, Prompt, Verdict
from tests.train.worth import weighed

PROMPTS = [Prompt(str(i), text, "") for i, text in enumerate(["12=?", "7", "345+6=?", "98"])]
CONFIG = TrainConfig(rollout=RolloutConfig(max_new_tokens=6, temperature=0.9), optim=OptimConfig(lr=1e-2, warmup_steps=0, grad_clip=0.05))


ADVANTAGES, COEF, SCALE = [1.0, -1.0, 0.5, -0.5, 0.0, 0.0, -2.0, 2.0], [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 0.0, 0.0], 0.1


@pytest.fixture
def groups(policy: Policy) -> list[Group]:
    samples = HFRollout(policy, CONFIG.rollout).generate(PROMPTS, 2, (0,))
    verdicts = [Verdict("wrong", 0.0, None, 0.0)] * 2
    return [Group(prompt, samples[2 * i : 2 * i + 2], verdicts) for i, prompt in enumerate(PROMPTS)]


@pytest.fixture
def batch(groups: list[Group]) -> Weighed:
    return weighed(groups, ADVANTAGES, COEF, scale=SCALE)


def whole(batch: Weighed) -> MicroBatch:
    """All samples in one micro-batch."""
    worth = Columns(batch.layout.slices, batch.advantages(), batch.column(batch.terms.entropy_coef, 0.0))
    (micro,) = micro_batches(batch.samples, batch.layout.rows, worth, tokens_per_microbatch=10**6, pad_id=0, device=torch.device("cpu"))
    return micro


def optimizer_of(policy: Policy) -> torch.optim.AdamW:
    return torch.optim.AdamW(policy.model.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)


def test_one_update_is_one_clipped_adam_step(policy: Policy, batch: Weighed, model_folder: Path) -> None:
    other = load_policy(ModelConfig(name=str(model_folder), share_prompts=False), torch.device("cpu"))
    result = update_policy(policy, optimizer_of(policy), batch, CONFIG, step=1)

    micro = whole(batch)
    entropy = measure(other, micro, temperature=0.9)["entropy"]
    loss = policy_loss(other, micro, make_objective(CONFIG, batch.terms, batch.samples)).loss
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
    assert result.num_tokens == result.measured.tokens == sum(len(s.tokens) for s in batch.samples)
    assert result.measured.responses == 8 and result.measured.entropy == pytest.approx(entropy.sum().item(), rel=1e-6)


def test_updates_take_equal_shares_of_the_prompts(policy: Policy, batch: Weighed, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[list[tuple[int, int]]] = []
    seen: list[tuple[list[int], bool]] = []

    def recording(config, terms, samples):  # type: ignore[no-untyped-def]
        shares.append([(s.prompt, s.index) for s in samples])
        return make_objective(config, terms, samples)

    def packed(samples, rows, columns, **options):  # type: ignore[no-untyped-def]
        seen.append((list(rows), columns is not None and columns.old_logprobs is not None))
        return micro_batches(samples, rows, columns, **options)

    monkeypatch.setattr(passes, "make_objective", recording)
    monkeypatch.setattr(scores, "micro_batches", packed)
    config = replace(CONFIG, optim=replace(CONFIG.optim, updates_per_step=2))
    result = update_policy(policy, optimizer_of(policy), batch, config, step=1)
    both = [[(0, 0), (0, 1), (1, 0), (1, 1)], [(2, 0), (2, 1), (3, 0), (3, 1)]]
    assert shares == [[*both[0], *both[1]], *both], "the whole step for what is measured, then both updates"
    first, second = [0, 1, 2, 3], [4, 5, 6, 7]
    assert seen == [(second, False), (second, False), (first, False), (second, True)], "scores of the second share, then both updates"
    assert result.metrics["policy/ratio_max"] > 1.01, "the second update is off-policy"


@pytest.mark.parametrize(
    "updates, tokens, aggregation",
    [(1, 10**6, "token_mean"), (2, 20, "token_mean"), (1, 20, "sequence_mean"), (1, 10**6, "constant")],
)
def test_slopes_are_those_of_the_policy_that_sampled(
    policy: Policy, batch: Weighed, updates: int, tokens: int, aggregation: Literal["token_mean", "sequence_mean", "constant"]
) -> None:
    """From the log-probs recorded at sampling and the entropies, token by token, however the samples are packed. A token weighs in the
    policy term as the aggregation says, in the entropy term 1 / loss tokens."""
    micro = whole(batch)
    entropy = measure(policy, micro, temperature=0.9)["entropy"]
    expected = {"policy": 0.0, "bonus": 0.0}
    loss_tokens = sum(len(sample.tokens) for sample in batch.samples)
    for b, row in enumerate(micro.rows):
        weight = {"token_mean": 1 / loss_tokens, "sequence_mean": 1 / (8 * len(batch.samples[row].tokens)), "constant": 1 / (8 * 6)}[
            aggregation
        ]
        for t in micro.loss_mask[b].nonzero().flatten().tolist():
            logprob, h = micro.rollout_logprobs[b, t].item(), entropy[b, t].item()
            slope = math.exp(logprob) * (logprob + h)
            expected["policy"] -= ADVANTAGES[row] * slope * weight * loss_tokens
            expected["bonus"] += COEF[row] * slope * (logprob + h)
    optim = replace(CONFIG.optim, updates_per_step=updates, tokens_per_microbatch=tokens)
    config = replace(CONFIG, optim=optim, objective=ObjectiveConfig(aggregation=aggregation))
    found = update_policy(policy, optimizer_of(policy), batch, config, step=1).slopes
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("updates", [1, 2, 4])
def test_only_later_updates_need_old_logprobs(policy: Policy, batch: Weighed, monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    count = {"with gradient": 0, "without": 0}

    def counting(module, args, kwargs):  # type: ignore[no-untyped-def]
        count["with gradient" if torch.is_grad_enabled() else "without"] += len(kwargs["input_ids"])

    policy.model.base_model.register_forward_pre_hook(counting, with_kwargs=True)
    config = replace(CONFIG, optim=replace(CONFIG.optim, updates_per_step=updates, tokens_per_microbatch=20))
    result = update_policy(policy, optimizer_of(policy), batch, config, step=1)
    assert count == {"with gradient": 8, "without": 8 * (updates - 1) // updates}, "samples, each once"
    assert (result.metrics["policy/ratio_max"] == 1.0) == (updates == 1)


def test_masked_responses_are_as_if_they_were_not_there(policy: Policy, groups: list[Group], model_folder: Path) -> None:
    other = load_policy(ModelConfig(name=str(model_folder), share_prompts=False), torch.device("cpu"))
    keep = [True, False, True, True, False, True, True, False]
    a = update_policy(policy, optimizer_of(policy), weighed(groups, ADVANTAGES, COEF, scale=SCALE, trained=keep), CONFIG, step=1)
    zeroed = ([value * use for value, use in zip(values, keep, strict=True)] for values in (ADVANTAGES, COEF))
    b = update_policy(other, optimizer_of(other), weighed(groups, *zeroed, scale=SCALE), CONFIG, step=1)
    lengths = [len(sample.tokens) for group in groups for sample in group.samples]
    assert a.num_tokens == sum(n for n, use in zip(lengths, keep, strict=True) if use) < b.num_tokens == sum(lengths)
    assert a.metrics["policy/loss"] * a.num_tokens == pytest.approx(b.metrics["policy/loss"] * b.num_tokens, rel=1e-5)
    assert a.metrics["optim/grad_norm"] * a.num_tokens == pytest.approx(b.metrics["optim/grad_norm"] * b.num_tokens, rel=1e-5)
    assert a.measured.entropy < b.measured.entropy, "the method sees the tokens of the loss and no others"


def test_the_held_entropy_is_weighed_by_token(policy: Policy, groups: list[Group], model_folder: Path) -> None:
    """In the first update, whose own pass measures it, and in the second, which needs a pass of its own; however it is cut."""
    held = [1.0, 1.0, 0.25, 0.25, 0.0, 0.0, 0.5, 0.5]
    batch = weighed(groups, ADVANTAGES, COEF, scale=SCALE, held=held)
    config = replace(CONFIG, optim=replace(CONFIG.optim, updates_per_step=2, tokens_per_microbatch=20))
    micro = whole(batch)
    entropy = measure(policy, micro, temperature=0.9)["entropy"]
    each = dict(zip(micro.rows, entropy.sum(1).tolist(), strict=True))
    result = update_policy(policy, optimizer_of(policy), batch, config, step=1)
    assert result.measured.entropy == pytest.approx(sum(held[row] * value for row, value in each.items()), rel=1e-5)
    lengths = [len(sample.tokens) for sample in batch.samples]
    assert result.measured.tokens == sum(weight * length for weight, length in zip(held, lengths, strict=True))
    assert result.measured.responses == sum(held)
    assert result.metrics["entropy/per_response"] == pytest.approx(sum(each.values()) / 8, rel=1e-5), "of all"


@pytest.mark.parametrize("updates", [1, 2])
def test_scores_that_are_there_are_not_made_again(policy: Policy, batch: Weighed, model_folder: Path, updates: int) -> None:
    """A method that needs entropies has all samples scored: every result is the same, bit for bit, and no further pass is made."""
    other = load_policy(ModelConfig(name=str(model_folder), share_prompts=False), torch.device("cpu"))
    config = replace(CONFIG, optim=replace(CONFIG.optim, updates_per_step=updates, tokens_per_microbatch=20))
    expected = update_policy(other, optimizer_of(other), batch, config, step=1)
    scored = scores.score(policy, batch.samples, batch.layout.rows, config)
    graphs: list[bool] = []
    policy.model.base_model.register_forward_pre_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    found = update_policy(policy, optimizer_of(policy), batch, config, step=1, scores=scored)
    assert all(graphs)
    assert found.measured.entropy == pytest.approx(expected.measured.entropy, rel=1e-6)
    assert found.measured.tokens == expected.measured.tokens and found.slopes == pytest.approx(expected.slopes, rel=1e-4)
    for a, b in zip(policy.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_step_without_loss_tokens_changes_nothing(policy: Policy, groups: list[Group]) -> None:
    before = [parameter.clone() for parameter in policy.model.parameters()]
    config = replace(CONFIG, optim=replace(CONFIG.optim, updates_per_step=2))
    result = update_policy(policy, optimizer_of(policy), weighed(groups, ADVANTAGES, COEF, trained=[False] * 8), config, step=1)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
    assert result.num_tokens == 0 and result.measured.entropy == 0.0
    assert result.metrics["policy/loss"] == 0.0 and result.metrics["entropy/mean"] is None


@pytest.mark.parametrize("objective", [ObjectiveConfig(), ObjectiveConfig(kind="gspo", aggregation="sequence_mean")], ids=["ppo", "gspo"])
@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_the_gradient_is_the_same_on_any_number_of_ranks(policy: Policy, batch: Weighed, objective: ObjectiveConfig, world: int) -> None:
    fixed = make_objective(replace(CONFIG, objective=objective), batch.terms, batch.samples)
    worth = Columns(batch.layout.slices, batch.advantages(), batch.column(batch.terms.entropy_coef, 0.0))
    parameters = list(policy.model.parameters())

    def gradient(budget: int, world: int) -> list[torch.Tensor]:
        policy.model.zero_grad()
        for rank in range(world):
            options = {"tokens_per_microbatch": budget, "pad_id": 0, "device": policy.device, "rank": rank, "world": world}
            for micro in micro_batches(batch.samples, batch.layout.rows, worth, **options):
                output = policy_loss(policy, micro, fixed)
                assert all(value.isfinite() for value in output.metrics.values()), "an empty micro-batch too"
                output.loss.backward()
        return [parameter.grad.clone() for parameter in parameters]

    expected = gradient(10**6, 1)
    for budget in (1, 30, 10**6):
        for a, b in zip(gradient(budget, world), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["ppo", "cispo", "gspo"])
def test_micro_batches_change_memory_only(policy: Policy, batch: Weighed, model_folder: Path, kind: str) -> None:
    other = load_policy(ModelConfig(name=str(model_folder), share_prompts=False), torch.device("cpu"))
    objective = ObjectiveConfig(kind=kind, aggregation="sequence_mean")
    config = replace(CONFIG, objective=objective, optim=replace(CONFIG.optim, updates_per_step=2))
    small = replace(config, optim=replace(config.optim, tokens_per_microbatch=1))
    a, b = (update_policy(p, optimizer_of(p), batch, c, step=1) for p, c in ((policy, config), (other, small)))
    assert a.measured.entropy == pytest.approx(b.measured.entropy, rel=1e-6)
    assert a.metrics.pop("tokens/padding_frac") > b.metrics["tokens/padding_frac"] == 0.0
    longest = max(len(sample.tokens) for sample in batch.samples)
    largest = max(-logprob for sample in batch.samples for logprob in sample.logprobs)
    rounding = 4 * longest * largest * torch.finfo(torch.float32).eps  # of a sum of log-probs; the mismatch is nothing else here
    assert max(metrics.pop("rollout/mismatch_sequence_max") for metrics in (a.metrics, b.metrics)) < rounding
    for name, value in a.metrics.items():
        assert value == pytest.approx(b.metrics[name], rel=1e-4, abs=1e-6), name
    assert ("policy/approx_kl" in a.metrics) == (kind != "gspo")


def test_share_of_the_bonus_is_measured_and_changes_nothing(policy: Policy, batch: Weighed, model_folder: Path) -> None:
    """Against the gradients of bonus and policy term from full logits by autograd alone; and the update is the same, bit for bit."""
    model = load_policy(ModelConfig(name=str(model_folder), share_prompts=False), torch.device("cpu")).model
    tokens = sum(len(sample.tokens) for sample in batch.samples)
    sizes = []
    for bonus in (True, False):
        loss = torch.zeros(())
        for sample, advantage, coef in zip(batch.samples, ADVANTAGES, (SCALE * weight for weight in COEF), strict=True):
            logits = model(torch.tensor([sample.prompt_tokens + sample.tokens])).logits[0, len(sample.prompt_tokens) - 1 : -1] / 0.9
            logp = torch.log_softmax(logits, -1)
            chosen = logp.gather(1, torch.tensor(sample.tokens)[:, None])
            loss = loss - (coef * -(logp.exp() * logp).sum() if bonus else advantage * chosen.sum()) / tokens
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        sizes.append(math.sqrt(sum(g.double().square().sum().item() for g in gradients)))
    other = load_policy(ModelConfig(name=str(model_folder), share_prompts=False), torch.device("cpu"))
    config = replace(CONFIG, run=replace(CONFIG.run, bonus_share_every=2))
    result = update_policy(policy, optimizer_of(policy), batch, config, step=2)
    plain = update_policy(other, optimizer_of(other), batch, CONFIG, step=2)
    assert result.metrics.pop("optim/bonus_share") == pytest.approx(sizes[0] / sum(sizes), rel=1e-4)
    assert result == plain and all(torch.equal(a, b) for a, b in zip(policy.model.parameters(), other.model.parameters(), strict=True))
    assert "optim/bonus_share" not in update_policy(policy, optimizer_of(policy), batch, config, step=3).metrics


def test_learning_rate_by_hand() -> None:
    constant = OptimConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(constant, u, 10) for u in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    linear = OptimConfig(lr=1.0, warmup_steps=2, schedule="linear")
    assert [learning_rate(linear, u, 6) for u in range(6)] == [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    cosine = OptimConfig(lr=1.0, warmup_steps=0, schedule="cosine")
    assert [learning_rate(cosine, u, 4) for u in range(4)] == pytest.approx([0.8535534, 0.5, 0.1464466, 0.0], abs=1e-7)
