"""The numbers and samples that a step records. One row of metrics is flat: name -> number."""

from __future__ import annotations

import math
import resource
import sys
from collections import Counter
from typing import Any

import numpy as np
import torch

from aer_kernels.methods.seam import HELD, reported
from aer_train.collect import Collected
from aer_train.step.tokens import Weighed
from aer_train.types import OUTCOMES, Group, Row, Verdict
from aer_train.verify.alternatives import stored


def collected_metrics(collected: Collected, tolerance: float) -> Row:
    """Return rewards and entropy by tier, group statistics and truncation of the step's own prompts, which refill cannot bias, and what
    all that was sampled cost: verifier outcomes, samples, tokens. Every prompt counts the same, however many responses it has.

    The entropy of a tier is that of a response, nats: the mean of -logprob over its samples, an unbiased estimate.

    Args:
        tolerance: rewards that differ by at most this are equal.
    """
    first, sampled = collected.rounds[0], [group for part in collected.rounds for group in part]
    tiers: dict[str, list[Group]] = {}
    for group in first:
        tiers.setdefault(group.prompt.tier, []).append(group)
    by_tier = sorted(tiers.items()) if len(tiers) > 1 else []
    verdicts = [verdict for group in sampled for verdict in group.verdicts]
    outcomes, seconds = Counter(verdict.outcome for verdict in verdicts), [verdict.seconds for verdict in verdicts]
    samples = [sample for group in sampled for sample in group.samples]
    answered = [v.extracted is not None for group in first for s, v in zip(group.samples, group.verdicts, strict=True) if not s.finished]
    graded = [group for group in first if any(verdict.graded for verdict in group.verdicts)] or first
    spreads = [max(group.rewards) - min(group.rewards) for group in first]
    return {
        "reward/mean": _mean([_mean(group.rewards) for group in first]),
        **{f"reward/tier/{tier}": _mean([_mean(group.rewards) for group in groups]) for tier, groups in by_tier},
        **{f"entropy/tier/{tier}": _mean([_mean([s.surprisal for s in group.samples]) for group in groups]) for tier, groups in by_tier},
        "reward/zero_variance_frac": _mean([spread <= tolerance for spread in spreads]),
        "reward/unsolved_frac": _mean([max(group.accuracies) <= 0.0 for group in graded]),
        "reward/all_correct_frac": _mean([min(group.accuracies) == 1.0 for group in first]),
        **_function_metrics(first, verdicts),
        **{f"outcome/{name}": outcomes[name] / len(verdicts) for name in sorted(OUTCOMES)},
        "perf/verify_seconds_mean": _mean(seconds),
        "perf/verify_seconds_max": max(seconds),
        "tokens/truncated_frac": _mean([not sample.finished for group in first for sample in group.samples]),
        "tokens/cut_answered_frac": _mean(answered) if answered else None,
        "tokens/generated": sum(len(sample.tokens) for sample in samples),
        "refill/rounds": len(collected.rounds) - 1,
        "refill/groups_replaced": len(first) - sum(group is other for group, other in zip(first, collected.groups, strict=True)),
        "refill/groups_left": collected.left,
        "refill/samples_wasted": sum(len(group.samples) for group in discarded(collected)),
    }


def _function_metrics(first: list[Group], verdicts: list[Verdict]) -> Row:
    """With reward.functions: accuracy, and of each function the mean of what it gave and the share of the responses for which it failed."""
    if verdicts[0].scores is None:
        return {}
    found: Row = {"reward/accuracy": _mean([_mean(group.accuracies) for group in first])}
    for name in verdicts[0].scores:
        given = [score for group in first for verdict in group.verdicts if (score := (verdict.scores or {}).get(name)) is not None]
        found[f"reward/function/{name}"] = _mean(given) if given else None
        found[f"reward/failed/{name}"] = _mean([name in verdict.failed for verdict in verdicts])
    return found


def discarded(collected: Collected) -> list[Group]:
    """Return the groups that were sampled and are not trained."""
    kept = {id(group) for group in collected.groups}
    return [group for part in collected.rounds for group in part if id(group) not in kept]


def batch_metrics(weighed: Weighed) -> Row:
    """Return the rewards and lengths of what is trained, the entropy coefficient of its tokens, and how many the method reweighted."""
    batch, coef = weighed.batch, weighed.entropy_coef().astype(np.float64)
    lengths, tokens = [len(sample.tokens) for sample in batch.samples], weighed.layout.size
    given = sum(float(coef[place].sum()) for place in weighed.layout.slices.values())
    reweighted = weighed.reweighted()
    return {
        "reward/batch_mean": _mean([reward for group in batch.groups for reward in group.rewards]),
        "reward/shaped_mean": _mean(batch.rewards),
        "tokens/response_mean": _mean(lengths),
        "tokens/masked_frac": 1.0 - len(weighed.layout.rows) / len(lengths),
        "tokens/loss": tokens,
        "entropy/coef_mean_token": given / tokens if tokens else None,
        **({} if reweighted is None else {"method/reweighted_frac": reweighted}),
    }


CONTROLLER = ("coef", "saturated", *HELD)
"""Numbers of `Method.status` that are logged under entropy/; all others are under method/."""


def method_metrics(before: Row, after: Row) -> Row:
    """Return what the method applied in a step, and what it aims at and holds after it.

    Args:
        before, after: its status when the step's tokens were weighed, and after its update.
    """
    return {f"{'entropy' if name in CONTROLLER else 'method'}/{name}": value for name, value in reported(before, after).items()}


def slope_metrics(slopes: dict[str, float], alpha: float, num_tokens: int) -> Row:
    """Return where this step's gradient moves the entropy, to first order and up to a common positive factor, and what part of it is bonus.

    Args:
        slopes: sums over the loss tokens by field of `EntropySlopes`.
        alpha: the coefficient that was applied.
    """
    policy_norm, bonus_norm = math.sqrt(slopes["policy_square"]), abs(alpha) * math.sqrt(slopes["bonus_square"])
    return {
        "entropy/policy_slope": slopes["policy"] / num_tokens if num_tokens else None,
        "entropy/bonus_slope": slopes["bonus"] / num_tokens if num_tokens else None,
        "entropy/predicted_change": (slopes["policy"] + alpha * slopes["bonus"]) / num_tokens if num_tokens else None,
        "entropy/bonus_share": bonus_norm / (policy_norm + bonus_norm) if policy_norm + bonus_norm else None,
    }


def time_metrics(seconds: dict[str, float], num_tokens: int, generated: int, ahead: float = 0.0) -> Row:
    """Return seconds and share of each part of the time since the last row, and tokens a second of sampling, training and the step.

    Args:
        seconds: by part (`Clock.lap`). A checkpoint is written after its step's row, so that its time is in the next one.
        num_tokens: loss tokens of the step.
        generated: response tokens sampled, those of refill included.
        ahead: seconds in which some of these were sampled while the step before trained.
    """
    sampling = seconds["rollout"] + ahead
    total, training = sum(seconds.values()), seconds["train"] + seconds["old_logprobs"]
    return {
        **{f"time/{part}": value for part, value in seconds.items()},
        "time/step": total,
        **{f"time_share/{part}": value / total for part, value in seconds.items()},
        "perf/tokens_per_second": num_tokens / (total - seconds["eval"] - seconds["checkpoint"]),
        "perf/rollout_tokens_per_second": generated / sampling if sampling else None,
        "perf/train_tokens_per_second": num_tokens / training,
    }


def peak_memory_mib(device: torch.device) -> float:
    """Return the most memory taken so far: of the GPU's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def sample_rows(step: int, weighed: Weighed, collected: Collected) -> list[Row]:
    """Return one row for each sample of a step; those of discarded groups, at the end, have no advantage."""
    batch, coef, slices = weighed.batch, weighed.entropy_coef(), weighed.layout.slices
    coefs = [float(coef[slices[row]].mean(dtype=np.float64)) if row in slices else None for row in range(len(batch.samples))]
    decided = iter(zip(batch.rewards, batch.advantages, coefs, batch.trained, strict=True))
    return [
        {
            "step": step,
            "prompt_id": group.prompt.id,
            "tier": group.prompt.tier,
            "prompt": group.prompt.text,
            "response": sample.text,
            "answer": group.prompt.answer,
            "other_answers": stored(group.prompt),
            "extracted": verdict.extracted or "",
            "outcome": verdict.outcome,
            "detail": verdict.detail,
            "reward": verdict.reward,
            **{f"reward/{name}": score for name, score in (verdict.scores or {}).items()},
            "shaped_reward": shaped,
            "advantage": advantage,
            "num_tokens": len(sample.tokens),
            "finished": sample.finished,
            "entropy_coef": coef_of_sample,
            "trained": trained,
            "version": sample.version,
        }
        for group in [*batch.groups, *discarded(collected)]
        for sample, verdict in zip(group.samples, group.verdicts, strict=True)
        for shaped, advantage, coef_of_sample, trained in [next(decided, (None, None, None, False))]
    ]


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)
