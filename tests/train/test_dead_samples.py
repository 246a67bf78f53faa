"""Samples without a gradient are in no training pass, and nothing but the time shows it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aer_kernels.entropy_control import EntropyControlConfig
from aer_kernels.methods import AER, Stateless, TokenBatch, TokenTerms
from aer_train.config.tree import ModelConfig, ObjectiveConfig, OptimConfig, RolloutConfig, TrainConfig
from aer_train.model import Policy, load_policy
from aer_train.rollout.hf import HFRollout
from aer_train.step.batching import micro_batches
from aer_train.step.passes import Passes
from aer_train.step.tokens import Weighed
from aer_train.step.totals import Totals
from aer_train.step.update import UpdateResult, update_policy
from aer_train.types import Group, Prompt, Verdict
from tests.train.worth import weighed

PROMPTS = [Prompt(str(i), text, "") for i, text in enumerate(["12=?", "7", "345+6=?", "98"])]
CONFIG = TrainConfig(
    rollout=RolloutConfig(max_new_tokens=6, temperature=0.9),
    optim=OptimConfig(lr=1e-2, warmup_steps=0, grad_clip=100.0, tokens_per_microbatch=20),
)
ADVANTAGES = [1.0, -1.0, 0.0, 0.0, 0.0, 0.0, -2.0, 0.0]
LIVE = [0, 1, 6]
NO_BONUS = [0.0] * 8
HELD_ALONE = AER(EntropyControlConfig())
"""Learns from entropies."""
PLAIN = AER(EntropyControlConfig(kind="off"))


@pytest.fixture
def groups(policy: Policy) -> list[Group]:
    samples = HFRollout(policy, CONFIG.rollout).generate(PROMPTS, 2, (0,))
    verdicts = [Verdict("wrong", 0.0, None, 0.0)] * 2
    return [Group(prompt, samples[2 * i : 2 * i + 2], verdicts) for i, prompt in enumerate(PROMPTS)]


@pytest.fixture
def other(model_folder: Path) -> Policy:
    return load_policy(ModelConfig(name=str(model_folder), share_prompts=False), torch.device("cpu"))


def config_of(mode: str = "measure", updates: int = 1, **objective: Any) -> TrainConfig:
    optim = replace(CONFIG.optim, updates_per_step=updates, dead_samples=mode)
    return replace(CONFIG, optim=optim, objective=ObjectiveConfig(**objective))


def update(policy: Policy, batch: Weighed, config: TrainConfig, method: Any = PLAIN) -> tuple[UpdateResult, torch.optim.AdamW]:
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.1)
    return update_policy(policy, optimizer, batch, config, step=1, method=method), optimizer


def all_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Weighed, "has_signal", lambda self: [True] * len(self.samples))


def assert_same_weights(a: Policy, b: Policy, **tolerance: float) -> None:
    for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True):
        torch.testing.assert_close(x, y, **(tolerance or {"rtol": 0.0, "atol": 0.0}))


@pytest.mark.parametrize(
    "objective",
    [
        {},
        {"aggregation": "sequence_mean"},
        {"aggregation": "constant", "kind": "cispo"},
        {"kind": "gspo"},
        {"mismatch": "sequence_mask"},
    ],
    ids=["ppo", "sequence_mean", "constant", "gspo", "mismatch"],
)
@pytest.mark.parametrize("updates", [1, 2])
def test_gradient_and_metrics_are_what_they_were(
    policy: Policy, other: Policy, groups: list[Group], objective: dict[str, Any], updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the same update with every sample in the training pass: Adam's first moments, which are the gradients, and every number."""
    batch, config = weighed(groups, ADVANTAGES, NO_BONUS, held=[1, 1, 1, 1, 0, 0, 0.5, 0.5]), config_of("measure", updates, **objective)
    found, optimizer = update(policy, batch, config)
    all_trained(monkeypatch)
    expected, full = update(other, batch, config)
    for a, b in zip(policy.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(optimizer.state[a]["exp_avg"], full.state[b]["exp_avg"], rtol=1e-4, atol=1e-7)
    assert found.metrics.pop("optim/dead_frac") == 5 / 8 and expected.metrics.pop("optim/dead_frac") == 0
    assert found.metrics.pop("tokens/padding_frac") is not None and expected.metrics.pop("tokens/padding_frac") is not None
    for name, value in found.metrics.items():
        assert value == pytest.approx(expected.metrics[name], rel=1e-4, abs=1e-5), name
    assert found.slopes == pytest.approx(expected.slopes, rel=1e-4, abs=1e-6) and found.num_tokens == expected.num_tokens
    for name in ("entropy", "tokens", "responses"):
        assert getattr(found.measured, name) == pytest.approx(getattr(expected.measured, name), rel=1e-6)


@pytest.mark.parametrize("mode, without", [("measure", 5), ("skip", 0)])
@pytest.mark.parametrize("updates", [1, 2])
def test_which_passes_are_made(policy: Policy, groups: list[Group], mode: str, without: int, updates: int) -> None:
    """Samples in passes. At the second of two updates the live one is scored before (it is off-policy), and the dead ones, of whom there
    are three, are scored and looked at again."""
    passes = {True: 0, False: 0}

    def count(module, args, kwargs):  # type: ignore[no-untyped-def]
        passes[torch.is_grad_enabled()] += len(kwargs["input_ids"])

    policy.model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    result, _ = update(policy, weighed(groups, ADVANTAGES, NO_BONUS), config_of(mode, updates))
    later = (4 + 3 - 3 if mode == "measure" else 1) if updates == 2 else 0
    assert passes == {True: len(LIVE), False: without + later}
    assert result.metrics["optim/dead_frac"] == 5 / 8


@pytest.mark.parametrize("updates", [1, 2])
def test_skip_trains_the_same_weights(policy: Policy, other: Policy, groups: list[Group], updates: int) -> None:
    batch = weighed(groups, ADVANTAGES, NO_BONUS)
    exact, _ = update(policy, batch, config_of("measure", updates))
    found, _ = update(other, batch, config_of("skip", updates))
    assert_same_weights(policy, other)
    assert found.metrics["policy/loss"] == exact.metrics["policy/loss"] and found.num_tokens == exact.num_tokens


def test_skip_estimates_the_mean_entropy_from_recorded_logprobs(policy: Policy, other: Policy, groups: list[Group]) -> None:
    batch = weighed(groups, ADVANTAGES, NO_BONUS)
    exact, _ = update(policy, batch, config_of("measure"))
    found, _ = update(other, batch, config_of("skip"))
    dead = [sample for row, sample in enumerate(batch.samples) if row not in LIVE]
    recorded = -math.fsum(logprob for sample in dead for logprob in sample.logprobs)
    live, _ = update(other, weighed(groups, ADVANTAGES, NO_BONUS, trained=[row in LIVE for row in range(8)]), config_of("skip"))
    total = found.metrics["entropy/mean"] * found.num_tokens
    assert total == pytest.approx(found.measured.entropy, rel=1e-9)
    assert found.measured.tokens == found.num_tokens == exact.num_tokens and found.measured.responses == 8
    assert total - recorded > 0 and abs(total / found.num_tokens - exact.metrics["entropy/mean"]) > 1e-6, "an estimate"
    assert live.num_tokens == found.num_tokens - sum(len(sample.tokens) for sample in dead)


def test_skip_measures_what_a_method_learns_from(policy: Policy, other: Policy, groups: list[Group]) -> None:
    """Samples that are held, or whose entropy a bonus would move while its coefficient is 0, whatever the option says."""
    coef, held = [1.0, 1.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    batch = weighed(groups, ADVANTAGES, coef, held=held, scale=0.0)
    exact, _ = update(policy, batch, config_of("measure"), HELD_ALONE)
    passes: list[int] = []
    other.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: None if torch.is_grad_enabled() else passes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found, _ = update(other, batch, config_of("skip"), HELD_ALONE)
    assert sum(passes) == 2, "the group that is held and has no advantage"
    assert found.measured == replace(
        exact.measured,
        entropy=pytest.approx(exact.measured.entropy, rel=1e-6),
        slopes=pytest.approx(exact.measured.slopes, rel=1e-5),
    )
    assert_same_weights(policy, other)


@pytest.mark.parametrize("mode", ["measure", "skip"])
def test_an_update_without_a_live_sample_leaves_the_optimizer_alone(policy: Policy, groups: list[Group], mode: str) -> None:
    """After a real update: neither momentum nor weight decay move a weight, and the state stays what it was."""
    _, optimizer = update(policy, weighed(groups, ADVANTAGES, NO_BONUS), config_of(mode))
    weights = [parameter.clone() for parameter in policy.model.parameters()]
    state = [{name: value.clone() for name, value in optimizer.state[p].items()} for p in policy.model.parameters()]
    result = update_policy(policy, optimizer, weighed(groups, NO_BONUS, NO_BONUS), config_of(mode), step=2, method=PLAIN)
    for parameter, weight, before in zip(policy.model.parameters(), weights, state, strict=True):
        assert torch.equal(parameter, weight)
        assert all(torch.equal(optimizer.state[parameter][name], value) for name, value in before.items())
    assert result.metrics["optim/dead_frac"] == 1.0 and result.metrics["policy/loss"] == result.metrics["optim/grad_norm"] == 0.0
    assert result.metrics["entropy/mean"] > 0 and result.metrics["policy/ratio_mean"] == 1.0


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("mode", ["measure", "skip"])
def test_ranks_stay_in_step(policy: Policy, groups: list[Group], world: int, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank runs the same number of micro-batches, and together they add up to one rank's gradient and sums."""
    batch = weighed(groups, ADVANTAGES, NO_BONUS)
    rows = batch.layout.rows

    def run(rank: int, world: int) -> tuple[list[torch.Tensor], dict[str, float], int]:
        def packed(samples, rows, columns, **options):  # type: ignore[no-untyped-def]
            return micro_batches(samples, rows, columns, **{**options, "rank": rank, "world": world})

        monkeypatch.setattr("aer_train.step.scores.micro_batches", packed)
        monkeypatch.setattr("aer_train.dist.is_main", lambda: rank == 0)
        policy.model.zero_grad()
        totals, count = Totals(policy.device), [0]
        passes = Passes(policy, batch, config_of(mode), totals, PLAIN)
        hook = policy.model.base_model.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))
        passes.look(rows, False)
        passes.backward(rows, False, passes.columns, totals)
        hook.remove()
        return [parameter.grad.clone() for parameter in policy.model.parameters()], totals.read(), count[0]

    gradients, sums, _ = run(0, 1)
    ranks = [run(rank, world) for rank in range(world)]
    assert len({count for *_, count in ranks}) == 1
    for name in ("entropy", "held_tokens", "weight", "ratio_mean", "measured"):
        assert math.fsum(found[name] for _, found, _ in ranks) == pytest.approx(sums[name], rel=1e-6), name
    for index, expected in enumerate(gradients):
        torch.testing.assert_close(sum(found[index] for found, *_ in ranks), expected, rtol=1e-4, atol=1e-6)


def test_what_makes_a_sample_live(groups: list[Group]) -> None:
    """An advantage that a weight of 0 takes away is none; a divergence or a bonus is enough; a coefficient at scale 0 is not."""
    batch = weighed(groups, ADVANTAGES, [0, 0, 1, 0, 0, 0, 0, 0], scale=0.5)
    size = batch.layout.size
    assert [row for row, live in enumerate(batch.has_signal()) if live] == [0, 1, 2, 6]
    assert [row for row, live in enumerate(replace(batch, terms=replace(batch.terms, entropy_scale=0.0)).has_signal()) if live] == LIVE
    none = replace(batch, terms=TokenTerms(weight=torch.zeros(size)))
    assert not any(none.has_signal())
    assert all(replace(batch, terms=TokenTerms(weight=torch.zeros(size), divergence_coef=torch.ones(size))).has_signal())


def test_a_method_that_learns_nothing_costs_no_pass() -> None:
    class Zero(Stateless):
        def terms(self, tokens: TokenBatch) -> TokenTerms:
            return TokenTerms()

    from aer_kernels.methods.seam import learns

    assert not learns(Zero()) and not learns(PLAIN) and not learns(AER(EntropyControlConfig(kind="fixed"))) and learns(HELD_ALONE)
