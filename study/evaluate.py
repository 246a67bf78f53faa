"""How many of its samples the last policy of a run gets right on each held-out prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from aer_train.checkpoint import latest
from aer_train.config import TrainConfig
from aer_train.estimates import pass_at_k
from aer_train.model import Policy, load_policy, resolve_device
from aer_train.rollout.hf import HFRollout
from aer_train.tasks import builtin_prompts
from aer_train.tasks.prompts import TIERS
from aer_train.verify import Verifier

Counts = dict[str, list[int]]
"""Right samples of each prompt, by tier."""


def right_samples(run: Path, config: TrainConfig, split: str, samples: int, limit: int | None) -> Counts:
    """Sample the prompts of a split at the temperature of training, `samples` times each; the draws depend on the run's seed alone.

    Args:
        run: its newest checkpoint is evaluated.
        limit: prompts; None is all.
    """
    newest = latest(run)
    assert newest is not None, "a finished run has a checkpoint"
    task = config.reward.kind
    prompts = builtin_prompts(f"builtin:{task}", split, limit, 0)
    policy = policy_at(newest, config)
    drawn = HFRollout(policy, config.rollout).generate(prompts, samples, (config.run.seed, "study", split))
    with Verifier(task, workers=1) as verifier:
        verdicts = verifier.score_many([(sample.text, prompts[sample.prompt].answer) for sample in drawn])
    right = [0] * len(prompts)
    for sample, verdict in zip(drawn, verdicts, strict=True):
        right[sample.prompt] += verdict.outcome == "correct"
    return {tier: [count for count, prompt in zip(right, prompts, strict=True) if prompt.tier == tier] for tier in TIERS}


def policy_at(checkpoint: Path, config: TrainConfig) -> Policy:
    """Return the policy of a checkpoint of a run."""
    return load_policy(replace(config.model, name=str(checkpoint)), resolve_device(config.run.device))


def pass_at(counts: list[int], samples: int, k: int) -> float:
    """Return the unbiased pass@k over prompts of which each had `samples` samples."""
    return float(pass_at_k(samples, counts)[:, k - 1].mean())
