"""`python -m benchmarks.trainer.ours JOB`: this project's trainer, as `aer-train train` runs it, records and samples written."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401  like the next, before memory is first looked at
from transformers.models.qwen3 import Qwen3ForCausalLM  # noqa: F401

from aer_kernels import EntropyControlConfig
from aer_train.config.tree import DataConfig, ModelConfig, OptimConfig, RewardConfig, RolloutConfig, RunConfig, TrainConfig
from aer_train.run.folder import Recorder
from aer_train.trainer import train
from benchmarks.trainer.cases import GROUP_SIZE, Case, Job
from benchmarks.trainer.process import Watch


def main() -> None:
    job = Job.read(Path(sys.argv[1]))
    watch, log = Watch(job), Recorder.log

    def watched(recorder: Recorder, row: dict[str, Any]) -> None:
        log(recorder, row)
        parts = {name.removeprefix("time/"): value for name, value in row.items() if name.startswith("time/") and name != "time/step"}
        watch.step(tokens=row["tokens/loss"], reward=row["reward/mean"], entropy=row["entropy/mean"], parts=parts)

    Recorder.log = watched  # type: ignore[method-assign]  # the end of a step, with everything that is written in it
    train(settings(job))
    watch.write(importlib.metadata.version("aer-rl"))


def settings(job: Job) -> TrainConfig:
    """Return the job as a configuration of this project."""
    case = job.case
    return TrainConfig(
        model=ModelConfig(name=str(job.model), share_prompts=case.share_prompts),
        data=DataConfig(train=str(job.data)),
        rollout=RolloutConfig(group_size=GROUP_SIZE, max_new_tokens=case.max_new_tokens, batch_size=case.prompts * GROUP_SIZE),
        reward=RewardConfig(kind=_reward(case)),
        method=_entropy(case),
        optim=OptimConfig(
            lr=case.lr,
            betas=(0.9, 0.99),
            warmup_steps=5,
            prompts_per_step=case.prompts,
            dead_samples=case.dead_samples,
            updates_per_step=case.updates_per_step,
            tokens_per_microbatch=1 << 20,  # an update in one pass, as TRL is told to
        ),
        run=RunConfig(out=str(job.work), seed=job.seed, steps=case.steps, device=job.device, threads=job.threads, save_every=0),
    )


def _reward(case: Case) -> str:
    if case.dead is not None:
        return "benchmarks.trainer.rewards.unless_dead"
    return "countdown" if case.vocab_size is None else "benchmarks.trainer.rewards.even_share"


def _entropy(case: Case) -> EntropyControlConfig:
    if case.entropy == "aer":
        return EntropyControlConfig(tau=1.2)  # above the start: the bonus is at work from the second step on
    return EntropyControlConfig(
        kind=case.entropy,
        difficulty="uniform",
        coef=case.coef,
        target=case.target or None,
        ema=0.0,
        min_coef=0.0,
        max_coef=1.0,
    )


if __name__ == "__main__":
    main()
