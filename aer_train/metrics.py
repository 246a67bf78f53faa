"""The numbers and samples that a step records. One row of metrics is flat: name -> number."""

from __future__ import annotations

import resource
import sys
from collections import Counter
from itertools import pairwise
from typing import Any

import torch

from aer_kernels import AdaptiveEntropyController
from aer_train.update import Batch

Row = dict[str, Any]


def batch_metrics(batch: Batch) -> Row:
    """Return rewards (also by tier), verifier outcomes, group statistics and lengths."""
    rewards = [verdict.reward for verdict in batch.verdicts]
    by_tier: dict[str, list[float]] = {}
    groups: list[list[float]] = [[] for _ in batch.prompts]
    for sample, reward in zip(batch.samples, rewards, strict=True):
        by_tier.setdefault(batch.prompts[sample.prompt].tier, []).append(reward)
        groups[sample.prompt].append(reward)
    lengths = [len(sample.tokens) for sample in batch.samples]
    outcomes = Counter(verdict.outcome for verdict in batch.verdicts)
    return {
        "reward/mean": _mean(rewards),
        **{f"reward/tier/{tier}": _mean(values) for tier, values in sorted(by_tier.items()) if len(by_tier) > 1},
        "reward/zero_variance_frac": _mean([min(group) == max(group) for group in groups]),
        "reward/all_correct_frac": _mean([min(group) == 1.0 for group in groups]),
        **{f"outcome/{name}": count / len(rewards) for name, count in sorted(outcomes.items())},
        "tokens/response_mean": _mean(lengths),
        "tokens/truncated_frac": _mean([not sample.finished for sample in batch.samples]),
        "tokens/loss": sum(lengths),
        "entropy/coef_mean_token": sum(c * n for c, n in zip(batch.entropy_coef, lengths, strict=True)) / sum(lengths),
    }


def controller_metrics(controller: AdaptiveEntropyController) -> Row:
    """Return what the controller aims at and holds, nats."""
    return {
        "entropy/smoothed": controller.smoothed_entropy,
        "entropy/target": controller.target if controller.enabled else None,
        "entropy/initial": controller.initial_entropy,
    }


def time_metrics(clock: list[float], num_tokens: int) -> Row:
    """Return seconds by phase from the four times (begin, after rollout, after verification, end), and response tokens a second."""
    rollout, verify, training = (after - before for before, after in pairwise(clock))
    total = clock[-1] - clock[0]
    return {
        "time/rollout": rollout,
        "time/verify": verify,
        "time/train": training,
        "time/eval": 0.0,
        "time/step": total,
        "perf/tokens_per_second": num_tokens / total,
    }


def peak_memory_mib(device: torch.device) -> float:
    """Return the most memory held so far: of the GPU's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def sample_rows(step: int, batch: Batch) -> list[Row]:
    """Return one row for each sample of a step."""
    return [
        {
            "step": step,
            "prompt_id": batch.prompts[sample.prompt].id,
            "tier": batch.prompts[sample.prompt].tier,
            "prompt": batch.prompts[sample.prompt].text,
            "response": sample.text,
            "answer": batch.prompts[sample.prompt].answer,
            "outcome": verdict.outcome,
            "reward": verdict.reward,
            "advantage": advantage,
            "num_tokens": len(sample.tokens),
            "finished": sample.finished,
            "entropy_coef": coef,
        }
        for sample, verdict, advantage, coef in zip(batch.samples, batch.verdicts, batch.advantages, batch.entropy_coef, strict=True)
    ]


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)
