"""Verification that keeps failing stops a run, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from aer_train.config.tree import DataConfig, ModelConfig, OptimConfig, RewardConfig, RolloutConfig, RunConfig, TrainConfig
from aer_train.run import checkpoint
from aer_train.run.folder import read_metrics
from aer_train.trainer import train
from aer_train.types import OUTCOMES, Verdict
from aer_train.verify.failures import Failures

GOOD = Verdict("wrong", 0.0, "5", 0.1)
LATE = Verdict("timeout", 0.0, "5", 5.0, "no answer within 5 s")
DEAD = Verdict("crash", 0.0, None, 0.1, "KeyError: 'x'")


def test_three_bad_steps_in_a_row() -> None:
    failures = Failures(0.5)
    for verdicts in ([LATE, DEAD, DEAD, GOOD], [DEAD, DEAD, DEAD], [LATE, GOOD], [DEAD], [DEAD, DEAD, LATE]):
        failures.step(verdicts)
        assert failures.persistent() == "", "half of them is not more than half, and the count begins anew"
    failures.step([LATE, DEAD, DEAD, GOOD])
    assert failures.persistent() == (
        "verification must fail for at most reward.max_failure_frac = 0.5, got more in 3 steps in a row "
        "(3 of 4 responses in the last one, 2 with crash: KeyError: 'x')"
    )


def test_one_never_stops() -> None:
    failures = Failures(1.0)
    for _ in range(5):
        failures.step([DEAD])
    assert failures.persistent() == ""


@pytest.mark.slow
def test_a_run_stops_with_a_checkpoint_and_its_records(model_folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        model=ModelConfig(name=str(model_folder)),
        data=DataConfig(limit=96),
        rollout=RolloutConfig(group_size=2, max_new_tokens=4),
        reward=RewardConfig(kind="tests.train.rewards.broken", workers=1),
        optim=OptimConfig(prompts_per_step=2),
        run=RunConfig(out=str(tmp_path / "run"), steps=9, threads=1, save_every=0),
    )
    with pytest.raises(
        ChildProcessError,
        match=r"max_failure_frac = 0\.5.*KeyError: 'no such column'.*step 3 is saved, go on with: aer-train train --resume",
    ):
        train(config)
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3] and all(row["outcome/crash"] == 1.0 for row in rows)
    assert {f"outcome/{name}" for name in OUTCOMES} <= rows[0].keys() and rows[0]["outcome/correct"] == 0.0
    assert 0 < rows[0]["perf/verify_seconds_mean"] <= rows[0]["perf/verify_seconds_max"]
    newest = checkpoint.latest(tmp_path / "run")
    assert newest is not None and newest.name == "step_000003"
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 3
