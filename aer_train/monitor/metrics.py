"""The numbers and samples that a step records. One row of metrics is flat: name -> number."""

from __future__ import annotations

import math
import resource
import sys
from collections import Counter
from typing import Any

import torch

from aer_kernels import AdaptiveEntropyController
from aer_train.collect import Collected
from aer_train.types import Batch, Group
from aer_train.verify import OUTCOMES

Row = dict[str, Any]


def collected_metrics(collected: Collected, tolerance: float) -> Row:
    """Return rewards and entropy by tier, group statistics and truncation of the step's own prompts, which refill cannot bias, and what
    all that was drawn cost: verifier outcomes, samples, tokens.

    The entropy of a tier is that of a response, nats: the mean of -logprob over its samples, an unbiased estimate.

    Args:
        tolerance: rewards that differ by at most this are equal.
    """
    first, drawn = collected.rounds[0], [group for part in collected.rounds for group in part]
    tiers: dict[str, list[Group]] = {}
    for group in first:
        tiers.setdefault(group.prompt.tier, []).append(group)
    by_tier = sorted(tiers.items()) if len(tiers) > 1 else []
    verdicts = [verdict for group in drawn for verdict in group.verdicts]
    outcomes, seconds = Counter(verdict.outcome for verdict in verdicts), [verdict.seconds for verdict in verdicts]
    samples = [sample for group in drawn for sample in group.samples]
    spreads = [max(group.rewards) - min(group.rewards) for group in first]
    return {
        "reward/mean": _mean([reward for group in first for reward in group.rewards]),
        **{f"reward/tier/{tier}": _mean([reward for group in groups for reward in group.rewards]) for tier, groups in by_tier},
        **{f"entropy/tier/{tier}": _mean([s.surprisal for group in groups for s in group.samples]) for tier, groups in by_tier},
        "reward/zero_variance_frac": _mean([spread <= tolerance for spread in spreads]),
        "reward/unsolved_frac": _mean([max(group.rewards) <= 0.0 for group in first]),
        "reward/all_correct_frac": _mean([min(group.rewards) == 1.0 for group in first]),
        **{f"outcome/{name}": outcomes[name] / len(verdicts) for name in sorted(OUTCOMES)},
        "perf/verify_seconds_mean": _mean(seconds),
        "perf/verify_seconds_max": max(seconds),
        "tokens/truncated_frac": _mean([not sample.finished for group in first for sample in group.samples]),
        "tokens/generated": sum(len(sample.tokens) for sample in samples),
        "refill/rounds": len(collected.rounds) - 1,
        "refill/groups_replaced": len(first) - sum(group is other for group, other in zip(first, collected.groups, strict=True)),
        "refill/groups_left": collected.left,
        "refill/samples_wasted": sum(len(group.samples) for group in discarded(collected)),
    }


def discarded(collected: Collected) -> list[Group]:
    """Return the groups that were drawn and are not trained."""
    kept = {id(group) for group in collected.groups}
    return [group for part in collected.rounds for group in part if id(group) not in kept]


def batch_metrics(batch: Batch) -> Row:
    """Return the rewards and lengths of what is trained, and the coefficient that its tokens got."""
    lengths = [len(sample.tokens) for sample in batch.samples]
    trained = [(c, n) for c, n, use in zip(batch.entropy_coef, lengths, batch.trained, strict=True) if use]
    tokens = sum(n for _, n in trained)
    return {
        "reward/batch_mean": _mean([reward for group in batch.groups for reward in group.rewards]),
        "reward/shaped_mean": _mean(batch.rewards),
        "tokens/response_mean": _mean(lengths),
        "tokens/masked_frac": 1.0 - len(trained) / len(lengths),
        "tokens/loss": tokens,
        "entropy/coef_mean_token": sum(c * n for c, n in trained) / tokens if tokens else None,
    }


def controller_metrics(controller: AdaptiveEntropyController) -> Row:
    """Return what the controller aims at and holds, nats."""
    return {
        "entropy/controlled": controller.last_entropy,
        "entropy/smoothed": controller.smoothed_entropy,
        "entropy/target": controller.target if controller.enabled else None,
        "entropy/initial": controller.initial_entropy,
    }


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


def time_metrics(seconds: dict[str, float], num_tokens: int, generated: int) -> Row:
    """Return seconds and share of each part of the time since the last row, and tokens a second of sampling, training and the step.

    Args:
        seconds: by part (`Clock.lap`). A checkpoint is written after its step's row, so that its time is in the next one.
        num_tokens: loss tokens of the step.
        generated: response tokens sampled, those of refill included.
    """
    total, training = sum(seconds.values()), seconds["train"] + seconds["old_logprobs"]
    return {
        **{f"time/{part}": value for part, value in seconds.items()},
        "time/step": total,
        **{f"time_share/{part}": value / total for part, value in seconds.items()},
        "perf/tokens_per_second": num_tokens / (total - seconds["eval"] - seconds["checkpoint"]),
        "perf/rollout_tokens_per_second": generated / seconds["rollout"],
        "perf/train_tokens_per_second": num_tokens / training,
    }


def peak_memory_mib(device: torch.device) -> float:
    """Return the most memory held so far: of the GPU's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def sample_rows(step: int, batch: Batch, collected: Collected) -> list[Row]:
    """Return one row for each sample of a step; those of discarded groups, at the end, have no advantage."""
    columns = (batch.rewards, batch.advantages, batch.entropy_coef, batch.trained)
    decided = iter(zip(*columns, strict=True))
    return [
        {
            "step": step,
            "prompt_id": group.prompt.id,
            "tier": group.prompt.tier,
            "prompt": group.prompt.text,
            "response": sample.text,
            "answer": group.prompt.answer,
            "extracted": verdict.extracted or "",
            "outcome": verdict.outcome,
            "detail": verdict.detail,
            "reward": verdict.reward,
            "shaped_reward": shaped,
            "advantage": advantage,
            "num_tokens": len(sample.tokens),
            "finished": sample.finished,
            "entropy_coef": coef,
            "trained": trained,
            "version": sample.version,
        }
        for group in [*batch.groups, *discarded(collected)]
        for sample, verdict in zip(group.samples, group.verdicts, strict=True)
        for shaped, advantage, coef, trained in [next(decided, (None, None, None, False))]
    ]


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)
