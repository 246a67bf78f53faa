"""Importance weights for the difference between trainer and rollout log-probs, against numbers worked out in another way."""

import math
from dataclasses import replace

import pytest
import torch

from aer_kernels.methods import TokenTerms
from aer_train.config.checks import check_config
from aer_train.config.tree import ObjectiveConfig, OptimConfig, RolloutConfig, TrainConfig
from aer_train.model import Policy
from aer_train.rollout.hf import HFRollout
from aer_train.step.batching import MicroBatch, micro_batches
from aer_train.step.loss import measure, policy_loss
from aer_train.step.mismatch import importance_weights, mismatch_kind, mismatch_metrics, mismatch_terms
from aer_train.step.objective import make_objective
from aer_train.step.update import update_policy
from aer_train.types import Group, Prompt, Verdict
from tests.train.worth import columns, weighed

LN2, LN3 = math.log(2), math.log(3)
TRAINER = [-1.0, -2.0, -0.5]
ROLLOUT = [-1.0 + LN2, -2.0 - LN3, -0.5]  # ratios 1/2, 3, 1: of the response 3/2


def rows(*responses: list[float]) -> torch.Tensor:
    """(B, T) with the responses at the right, whatever their lengths."""
    width = max(map(len, responses)) + 1
    return torch.tensor([[torch.nan] * (width - len(r)) + r for r in responses])


@pytest.mark.parametrize(
    ("kind", "cap", "expected"),
    [
        ("token_truncate", 2.0, [0.5, 2.0, 1.0]),
        ("token_mask", 2.0, [0.5, 0.0, 1.0]),
        ("sequence_truncate", 1.2, [1.2, 1.2, 1.2]),
        ("sequence_truncate", 2.0, [1.5, 1.5, 1.5]),
        ("sequence_mask", 1.2, [0.0, 0.0, 0.0]),
        ("sequence_mask", 2.0, [1.5, 1.5, 1.5]),
    ],
)
def test_weights_by_hand(kind: str, cap: float, expected: list[float]) -> None:
    """Beside a response of one token on which both agree, whose weight is not touched."""
    trainer, rollout = rows(TRAINER, [-1.0]), rows(ROLLOUT, [-1.0])
    found = importance_weights(trainer, rollout, ~trainer.isnan(), kind, cap)
    assert found[0].tolist() == [0.0, *(pytest.approx(x) for x in expected)]
    assert found[1].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_hopeless_tokens_stay_finite() -> None:
    mask = torch.tensor([[True, True]])
    tiny, plain = torch.tensor([[-1e30, -1e30]]), torch.tensor([[-1.0, -1.0]])
    assert importance_weights(plain, tiny, mask, "token_truncate", 1e30).tolist() == [[pytest.approx(math.exp(20))] * 2]
    assert importance_weights(tiny, plain, mask, "sequence_mask", 2.0).tolist() == [[pytest.approx(math.exp(-20))] * 2]


def collected(kind: str, cap: float, trainer: torch.Tensor, rollout: torch.Tensor) -> dict[str, float | None]:
    mask = ~trainer.isnan()
    terms = mismatch_terms(trainer, rollout, mask, kind, cap)
    return mismatch_metrics({name: value.item() for name, value in terms.items()}, int(mask.sum()))


def test_metrics_by_hand() -> None:
    trainer, rollout = rows(TRAINER, [-4.0]), rows(ROLLOUT, [-4.0 - LN2])
    ratios = [0.5, 3.0, 1.0, 2.0]
    assert collected("token_truncate", 2.5, trainer, rollout) == {
        "rollout/mismatch_mean": pytest.approx((LN2 + LN3 + 0 + LN2) / 4),
        "rollout/mismatch_max": pytest.approx(LN3),
        "rollout/mismatch_sequence_max": pytest.approx(LN2),
        "rollout/mismatch_kl": pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 4),
        "rollout/mismatch_ess": pytest.approx(sum(ratios) ** 2 / (4 * sum(r * r for r in ratios))),
        "rollout/mismatch_over_cap": 0.25,
    }
    metrics = collected("sequence_mask", 1.2, trainer[:1], rollout[:1])
    assert metrics["rollout/mismatch_ess"] == pytest.approx(1.0), "one response, one weight"
    assert metrics["rollout/mismatch_over_cap"] == 1.0, "all its tokens are left out"
    assert collected("off", 2.0, trainer, rollout)["rollout/mismatch_over_cap"] == 0.0


def test_k3_estimates_the_divergence() -> None:
    """Of tokens drawn from the rollout's distribution, against the sum over the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    rollout = torch.log_softmax(torch.randn(50, generator=generator, dtype=torch.float64), 0)
    trainer = torch.log_softmax(rollout + 0.3 * torch.randn(50, generator=generator, dtype=torch.float64), 0)
    tokens = torch.multinomial(rollout.exp(), 200_000, replacement=True, generator=generator)
    exact = (rollout.exp() * (rollout - trainer)).sum().item()
    found = collected("off", 2.0, trainer[tokens][None], rollout[tokens][None])["rollout/mismatch_kl"]
    assert found == pytest.approx(exact, rel=0.02) and exact > 0.01


def test_auto_depends_on_the_backend() -> None:
    config = TrainConfig()
    gspo = ObjectiveConfig(kind="gspo", aggregation="sequence_mean")
    assert mismatch_kind(config) == "off"
    vllm = replace(config, rollout=RolloutConfig(backend="vllm"))
    assert mismatch_kind(vllm) == "token_truncate"
    assert mismatch_kind(replace(vllm, objective=gspo)) == "sequence_truncate"
    assert mismatch_kind(replace(vllm, objective=ObjectiveConfig(mismatch="off"))) == "off"
    for bad, match in (
        (
            replace(gspo, mismatch="token_mask"),
            "objective.mismatch must be of the whole sequence .* for objective.kind gspo, got token_mask",
        ),
        (ObjectiveConfig(mismatch_cap=0.9), "objective.mismatch_cap must be >= 1, got 0.9"),
    ):
        with pytest.raises(ValueError, match=match):
            check_config(replace(config, objective=bad))


@pytest.mark.parametrize(
    ("kind", "aggregation"), [("ppo", "token_mean"), ("ppo", "sequence_mean"), ("ppo", "constant"), ("cispo", "token_mean")]
)
def test_truncated_weights_in_one_pass(policy: Policy, kind: str, aggregation: str) -> None:
    """Value, gradient and metrics of the update that measures the sampling policy first."""
    generator = torch.Generator().manual_seed(0)
    config = ObjectiveConfig(kind=kind, aggregation=aggregation, clip_high=0.05, mismatch_cap=1.3)
    drawn = HFRollout(policy, RolloutConfig(max_new_tokens=6)).generate(PROMPTS, 2, (0,))
    samples = [replace(s, logprobs=[x + 0.5 * torch.randn((), generator=generator).item() for x in s.logprobs]) for s in drawn]
    coef, packing = [0.1 * k for k in range(8)], {"tokens_per_microbatch": 10**6, "pad_id": 0, "device": policy.device}
    (micro,) = micro_batches(samples, range(8), columns(samples, ADVANTAGES, coef), **packing)
    settings = TrainConfig(objective=replace(config, mismatch="token_truncate"), rollout=RolloutConfig(max_new_tokens=6))
    objective = make_objective(settings, TokenTerms(), samples)
    measured = measure(policy, micro, temperature=1.0)["logprobs"]
    results = []
    for old in (None, measured):
        policy.model.zero_grad()
        batch = replace(micro, old_logprobs=old)
        output = policy_loss(policy, batch, objective)
        output.loss.backward()
        results.append((output, [p.grad.clone() for p in policy.model.parameters()]))
    (one, gradient), (two, expected) = results
    assert one.loss.item() == pytest.approx(two.loss.item(), rel=1e-5)
    assert_close(gradient, expected)
    for name in ("clip_frac", "ratio_mean", "ratio_max", "approx_kl"):
        assert one.metrics[name].item() == pytest.approx(two.metrics[name].item(), abs=1e-5)
    assert mismatch_terms(measured, micro.rollout_logprobs, micro.loss_mask, "token_truncate", 1.3)["mismatch_over_cap"] > 5, (
        "the case must truncate"
    )


@pytest.mark.parametrize(("kind", "passes"), [("off", 0), ("token_truncate", 0), ("token_mask", 8), ("sequence_truncate", 8)])
def test_which_weights_need_a_pass_of_their_own(policy: Policy, monkeypatch: pytest.MonkeyPatch, kind: str, passes: int) -> None:
    seen: list[int] = []

    def recording(policy: Policy, micro: MicroBatch, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(micro.rows))
        return measure(policy, micro, **options)

    monkeypatch.setattr("aer_train.step.scores.measure", recording)
    update(policy, [0.1] * 8, ADVANTAGES, ObjectiveConfig(mismatch=kind))
    assert sum(seen) == passes
    seen.clear()
    update(policy, [0.1] * 8, ADVANTAGES, ObjectiveConfig(mismatch=kind), updates=2)
    assert sum(seen) == max(passes, 4), "the samples of the second update always"


PROMPTS = [Prompt(str(i), text, "") for i, text in enumerate(["12=?", "7", "345+6=?", "98"])]
ADVANTAGES = [1.0, -1.0, 0.5, -0.5, 0.3, 0.1, -2.0, 2.0]


def update(
    policy: Policy, shifts: list[float], advantages: list[float], objective: ObjectiveConfig, updates: int = 1
) -> tuple[list[torch.Tensor], dict[str, float]]:
    """What one step of plain SGD (lr 1, unclipped) adds to the parameters, which are put back, and its metrics.

    Sample k is recorded with log-probs that are shifts[k] below the trainer's.
    """
    config = TrainConfig(
        rollout=RolloutConfig(max_new_tokens=6),
        objective=objective,
        optim=OptimConfig(lr=1.0, warmup_steps=0, grad_clip=1e9, updates_per_step=updates, prompts_per_step=4),
    )
    drawn = HFRollout(policy, config.rollout).generate(PROMPTS, 2, (0,))
    samples = [replace(s, logprobs=[x - shift for x in s.logprobs]) for s, shift in zip(drawn, shifts, strict=True)]
    groups = [Group(prompt, samples[2 * p : 2 * p + 2], [Verdict("wrong", 0.0, None, 0.0)] * 2) for p, prompt in enumerate(PROMPTS)]
    parameters = list(policy.model.parameters())
    before = [p.detach().clone() for p in parameters]
    batch = weighed(groups, advantages, [0.0] * 8)
    result = update_policy(policy, torch.optim.SGD(parameters, lr=1.0), batch, config, step=1)
    added = [p.detach() - old for p, old in zip(parameters, before, strict=True)]
    with torch.no_grad():
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(old)
    return added, result.metrics


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    scale = max(e.abs().max().item() for e in expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", ["ppo", "cispo", "gspo"])
def test_a_weight_scales_the_update(policy: Policy, kind: str) -> None:
    """Every token was recorded at 1/1.5 of its probability: token weights are 1.5; those of a response of n tokens 1.5^n."""
    shifts, off = [math.log(1.5)] * 8, ObjectiveConfig(kind=kind, aggregation="sequence_mean", mismatch="off")
    plain, metrics = update(policy, shifts, ADVANTAGES, off)
    assert metrics["rollout/mismatch_mean"] == pytest.approx(shifts[0], abs=1e-5) and metrics["rollout/mismatch_over_cap"] == 0.0
    cases = [("sequence_truncate", 1.2, 1.2), ("sequence_mask", 1.2, 0.0)]
    cases += [] if kind == "gspo" else [("token_truncate", 1.2, 1.2), ("token_mask", 1.2, 0.0), ("token_truncate", 2.0, 1.5)]
    for mismatch, cap, factor in cases:
        found, metrics = update(policy, shifts, ADVANTAGES, replace(off, mismatch=mismatch, mismatch_cap=cap))
        if factor:
            assert_close(found, [factor * p for p in plain])
        else:
            assert all(not f.any() for f in found)
        assert metrics["rollout/mismatch_over_cap"] == (1.0 if cap == 1.2 else 0.0), mismatch
        assert metrics["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5), "a weight is not a ratio: one update is on-policy"


def test_masked_responses_stay_in_the_denominators(policy: Policy) -> None:
    """Every second response is left out: the others weigh what they weighed before."""
    expected, _ = update(policy, [0.0] * 8, [1.0, 0.0] * 4, ObjectiveConfig(mismatch="off"))
    found, _ = update(policy, [0.0, 2.0] * 4, [1.0] * 8, ObjectiveConfig(mismatch="sequence_mask"))
    assert_close(found, expected)


def test_several_updates_keep_the_ratio_to_the_trainer(policy: Policy) -> None:
    """The ratio of the second update refers to the trainer's own log-probs before the first, whatever the rollout recorded."""
    small = [0.1 * a for a in ADVANTAGES]
    expected, plain = update(policy, [0.0] * 8, small, ObjectiveConfig(mismatch="off"), updates=2)
    halved = [0.5 * a for a in small]
    found, shifted = update(policy, [math.log(2)] * 8, halved, ObjectiveConfig(mismatch="token_truncate", mismatch_cap=3.0), updates=2)
    assert_close(found, expected)
    for name in ("policy/ratio_max", "policy/ratio_mean", "policy/approx_kl"):
        assert shifted[name] == pytest.approx(plain[name], rel=1e-3), name
