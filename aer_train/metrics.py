"""The numbers and samples that a step records. One row of metrics is flat: name -> number."""

from __future__ import annotations

import resource
import sys
from collections import Counter
from typing import Any

import torch

from aer_kernels import AdaptiveEntropyController
from aer_train.types import Batch, Group

Row = dict[str, Any]


def group_metrics(groups: list[Group]) -> Row:
    """Return rewards (also by tier), verifier outcomes, group statistics and truncation."""
    rewards = [reward for group in groups for reward in group.rewards]
    by_tier: dict[str, list[float]] = {}
    for group in groups:
        by_tier.setdefault(group.prompt.tier, []).extend(group.rewards)
    outcomes = Counter(verdict.outcome for group in groups for verdict in group.verdicts)
    return {
        "reward/mean": _mean(rewards),
        **{f"reward/tier/{tier}": _mean(values) for tier, values in sorted(by_tier.items()) if len(by_tier) > 1},
        "reward/zero_variance_frac": _mean([min(group.rewards) == max(group.rewards) for group in groups]),
        "reward/all_correct_frac": _mean([min(group.rewards) == 1.0 for group in groups]),
        **{f"outcome/{name}": count / len(rewards) for name, count in sorted(outcomes.items())},
        "tokens/truncated_frac": _mean([not sample.finished for group in groups for sample in group.samples]),
    }


def batch_metrics(batch: Batch) -> Row:
    """Return the lengths of what is trained, and the coefficient that its tokens got."""
    lengths = [len(sample.tokens) for sample in batch.samples]
    trained = [(c, n) for c, n, use in zip(batch.entropy_coef, lengths, batch.trained, strict=True) if use]
    tokens = sum(n for _, n in trained)
    return {
        "tokens/response_mean": _mean(lengths),
        "tokens/loss": tokens,
        "entropy/coef_mean_token": sum(c * n for c, n in trained) / tokens,
    }


def controller_metrics(controller: AdaptiveEntropyController) -> Row:
    """Return what the controller aims at and holds, nats."""
    return {
        "entropy/smoothed": controller.smoothed_entropy,
        "entropy/target": controller.target if controller.enabled else None,
        "entropy/initial": controller.initial_entropy,
    }


def time_metrics(seconds: dict[str, float], num_tokens: int) -> Row:
    """Return seconds and share of each part of the time since the last row, and the trained tokens a second of it.

    Args:
        seconds: by part (`Clock.lap`). A checkpoint is written after its step's row, so that its time is in the next one.
        num_tokens: loss tokens of the step.
    """
    total = sum(seconds.values())
    work = total - seconds["eval"] - seconds["checkpoint"]
    return {
        **{f"time/{part}": value for part, value in seconds.items()},
        "time/step": total,
        **{f"time_share/{part}": value / total for part, value in seconds.items()},
        "perf/tokens_per_second": num_tokens / work,
    }


def peak_memory_mib(device: torch.device) -> float:
    """Return the most memory held so far: of the GPU's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def sample_rows(step: int, batch: Batch) -> list[Row]:
    """Return one row for each sample of a step."""
    drawn = [(group.prompt, *pair) for group in batch.groups for pair in zip(group.samples, group.verdicts, strict=True)]
    return [
        {
            "step": step,
            "prompt_id": prompt.id,
            "tier": prompt.tier,
            "prompt": prompt.text,
            "response": sample.text,
            "answer": prompt.answer,
            "outcome": verdict.outcome,
            "reward": verdict.reward,
            "advantage": advantage,
            "num_tokens": len(sample.tokens),
            "finished": sample.finished,
            "entropy_coef": coef,
        }
        for (prompt, sample, verdict), advantage, coef in zip(drawn, batch.advantages, batch.entropy_coef, strict=True)
    ]


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)
