"""Evaluation: avg@n and unbiased pass@k of the present policy, by difficulty tier."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from aer_train.checkpoint import latest
from aer_train.config import RolloutConfig, TrainConfig
from aer_train.console import Console
from aer_train.data import load_prompts
from aer_train.model import Policy, load_policy, resolve_device
from aer_train.record import write_atomic
from aer_train.rollout.hf import HFRollout
from aer_train.types import Prompt
from aer_train.verify import Verifier


def evaluate(
    policy: Policy,
    prompts: list[Prompt],
    verifier: Verifier,
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """Sample every prompt and return accuracy, pass@k and the share of truncated responses of each tier and of all prompts.

    Args:
        samples: n of avg@n, responses per prompt.
        temperature: >= 0; 0 is greedy.
        seed: the same seed gives the same random numbers at every step, so that differences are the policy's.
    Returns:
        {"samples", "temperature", "max_new_tokens", "tiers": {tier: {"problems", "accuracy", "truncated_frac", "pass@k": {"1": ...}}}}.
    """
    rollout = HFRollout(policy, RolloutConfig(max_new_tokens=max_new_tokens, batch_size=batch_size))
    responses = rollout.generate(prompts, samples, (seed, "eval"), temperature)
    verdicts = verifier.score_many([(response.text, prompts[response.prompt].answer) for response in responses])
    correct, truncated = [0] * len(prompts), [0] * len(prompts)
    for response, verdict in zip(responses, verdicts, strict=True):
        correct[response.prompt] += verdict.outcome == "correct"
        truncated[response.prompt] += not response.finished
    tiers: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        tiers.setdefault(prompt.tier, []).append(index)
    tiers["all"] = list(range(len(prompts)))
    return {
        "samples": samples,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "tiers": {
            tier: summarize([correct[i] for i in members], [truncated[i] for i in members], samples) for tier, members in tiers.items()
        },
    }


def summarize(correct: Sequence[int], truncated: Sequence[int], samples: int) -> dict[str, Any]:
    """Return the numbers of one tier from the correct and truncated responses of each of its prompts, out of `samples`."""
    problems = len(correct)
    return {
        "problems": problems,
        "accuracy": sum(correct) / (problems * samples),
        "truncated_frac": sum(truncated) / (problems * samples),
        "pass@k": {str(k): sum(pass_at_k(samples, c, k) for c in correct) / problems for k in pass_ks(samples)},
    }


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return the unbiased estimate of the chance that at least one of k responses is correct.

        1 - C(samples - correct, k) / C(samples, k)

    Args:
        samples: n >= k responses, of which `correct` were correct.
    Source: arXiv:2107.03374.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k must be in [1, samples = {samples}], got {k}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_ks(samples: int) -> list[int]:
    """Return 1, 2, 4, ... and `samples` itself."""
    return sorted({2**i for i in range(samples.bit_length())} | {samples})


def evaluate_model(name: str, config: TrainConfig, out: Path) -> dict[str, Any]:
    """Evaluate a model on `config.eval.data`, print a table and write the result to `out`.

    Args:
        name: hub id, folder, checkpoint, or run folder (its newest checkpoint).
        config: where the prompts come from, how they are rendered, sampled and judged.
        out: JSON file.
    Raises:
        ValueError - nothing to evaluate on, or a run without a checkpoint.
    """
    if config.eval.data is None:
        raise ValueError("--data must be given when the settings name no eval.data, got None")
    source = name
    if (Path(name) / "checkpoints").is_dir():
        newest = latest(Path(name))
        if newest is None:
            raise ValueError(f"--model must be a run with a complete checkpoint, got {name}")
        source = str(newest)
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    console = Console()
    policy = load_policy(replace(config.model, name=source), resolve_device(config.run.device))
    prompts = load_prompts(
        config.data,
        policy.tokenizer,
        config.eval.data,
        config.eval.split,
        limit=config.eval.limit,
        seed=config.run.seed,
        message=console.message,
    )
    with Verifier(config.reward.kind, config.reward.timeout, config.reward.workers) as verifier:
        result = evaluate(
            policy,
            prompts,
            verifier,
            samples=config.eval.samples,
            temperature=config.eval.temperature,
            max_new_tokens=config.rollout.max_new_tokens,
            batch_size=config.rollout.batch_size,
            seed=config.run.seed,
        )
    result = {"model": source, "data": config.eval.data, **result}
    console.eval_table(result)
    write_atomic(out, json.dumps(result, indent=2))
    console.message(f"written to {out}")
    return result
