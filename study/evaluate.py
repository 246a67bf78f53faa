"""The last checkpoint of a run on a split of held-out prompts: how many of its samples are right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from aer_train.config.tree import TrainConfig
from aer_train.data.prompts import load_prompts
from aer_train.evaluation.estimates import pass_at_k
from aer_train.model import Policy, load_policy, resolve_device
from aer_train.rollout.hf import HFRollout
from aer_train.run.checkpoint import latest
from aer_train.tasks import PREFIX, builtin_prompts
from aer_train.tasks.prompts import TIERS
from aer_train.types import Prompt, Sampling
from aer_train.verify import Verifier

Counts = dict[str, list[int]]
"""Right samples of each prompt, by tier."""


def right_samples(run: Path, config: TrainConfig, split: str, samples: int, limit: int | None) -> Counts:
    """Sample the prompts of a split `samples` times each, whatever the run was trained with; the draws depend on the run's seed alone.

    Args:
        run: its newest checkpoint is evaluated.
        split: its name, at temperature 1, or as in "test at 0.6" at another one.
        limit: prompts; None is all.
    """
    name, _, temperature = split.partition(" at ")
    newest = latest(run)
    assert newest is not None, "a finished run has a checkpoint"
    policy = policy_at(newest, config)
    prompts = held_out(config, name, limit, policy)
    return count_right(policy, config, prompts, samples, float(temperature or 1.0), (config.run.seed, "study", name))


def count_right(
    policy: Policy, config: TrainConfig, prompts: list[Prompt], samples: int, temperature: float, seed: tuple[int | str, ...]
) -> Counts:
    """Return how many of the responses to each prompt are right.

    Args:
        temperature: 0 is greedy: one response, which counts as `samples` equal ones.
    """
    repeats = samples if temperature == 0 else 1
    drawn = HFRollout(policy, config.rollout).generate(prompts, samples // repeats, seed, Sampling(temperature, 1.0))
    with Verifier(config.reward.kind, workers=1) as verifier:
        verdicts = verifier.score_many([(sample.text, prompts[sample.prompt].answer) for sample in drawn])
    right = [0] * len(prompts)
    for sample, verdict in zip(drawn, verdicts, strict=True):
        right[sample.prompt] += repeats * (verdict.outcome == "correct")
    return {tier: [count for count, prompt in zip(right, prompts, strict=True) if prompt.tier == tier] for tier in TIERS}


def held_out(config: TrainConfig, split: str, limit: int | None, policy: Policy) -> list[Prompt]:
    """Return the prompts of a split of an embedded task, or of the file beside the training file of a real model."""
    if config.data.train.startswith(PREFIX):
        return builtin_prompts(f"{PREFIX}{config.reward.kind}", split, limit, 0)
    source = str(Path(config.data.train).with_name(f"{split}.jsonl"))
    return load_prompts(config.data, policy.tokenizer, source, split, limit=limit).prompts


def policy_at(checkpoint: Path, config: TrainConfig) -> Policy:
    """Return the policy of a checkpoint of a run."""
    return load_policy(replace(config.model, name=str(checkpoint)), resolve_device(config.run.device))


def pass_at(counts: list[int], samples: int, k: int) -> float:
    """Return the unbiased pass@k over prompts of which each had `samples` samples."""
    return float(pass_at_k(samples, counts)[:, k - 1].mean())
