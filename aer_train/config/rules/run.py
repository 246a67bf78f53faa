"""Where a run writes, and how long it is."""

from __future__ import annotations

from aer_train.config.rules.check import check
from aer_train.config.tree import TrainConfig


def check_run(config: TrainConfig) -> None:
    run = config.run
    check("run.steps", run.steps, run.steps >= 1, "be >= 1")
    check("run.threads", run.threads, run.threads is None or run.threads >= 1, "be >= 1 or None")
    check("run.timeout", run.timeout, run.timeout > 0, "be > 0")
    check("run.save_every", run.save_every, run.save_every >= 0, "be >= 0")
    check("run.keep", run.keep, run.keep >= 1, "be >= 1")
    check("run.save_samples_every", run.save_samples_every, run.save_samples_every >= 0, "be >= 0")
    check("run.bonus_share_every", run.bonus_share_every, run.bonus_share_every >= 0, "be >= 0")
    check("run.project", run.project, bool(run.project), "not be empty")
    check("run.entity", run.entity, run.entity is None or "wandb" in run.sinks, "be None unless wandb is in run.sinks")
    shown = run.sink_samples
    check("run.sink_samples", shown, shown >= 0, "be >= 0")
    check(
        "run.sink_samples",
        shown,
        not shown or bool(run.sinks and run.save_samples_every),
        "be 0 without run.sinks and run.save_samples_every",
    )
