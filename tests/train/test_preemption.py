"""SIGTERM: a checkpoint between steps, an exit code and a line; a second one stops at once; several ranks stop at the same step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from aer_train.cli import main
from aer_train.config.tree import EvalConfig, RewardConfig
from aer_train.preemption import EXIT_CODE, awaited
from aer_train.run import checkpoint
from aer_train.run.folder import read_config, read_evals, read_metrics
from tests.train.test_dist import OPTIM, config_of, torchrun


def wait_for(what: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def steps_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def start(config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "aer_train", "train", "--config", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def write(path: Path, config: object) -> Path:
    path.write_text(json.dumps(asdict(config)))  # type: ignore[call-overload]
    return path


def test_the_notice_is_for_the_time_of_the_context() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with awaited() as notice:
        assert not notice.given()
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.given()
    assert signal.getsignal(signal.SIGTERM) == before
    found: list[bool] = []

    def elsewhere() -> None:
        with awaited() as notice:
            found.append(notice.given())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [False], "another thread than the main one can train, too"


@pytest.mark.slow
def test_a_checkpoint_between_steps(model_folder: Path, tmp_path: Path) -> None:
    """It resumes to the run that was never interrupted, bit for bit, with an evaluation that was due when the signal came."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    config = config_of(model_folder, run, optim=OPTIM, eval=EvalConfig(data="builtin:countdown", samples=1, limit=3, every=1))
    config = replace(config, run=replace(config.run, steps=100_000, save_every=0))
    job = start(write(tmp_path / "config.json", config))
    wait_for(lambda: steps_of(run) >= 2)
    os.kill(job.pid, signal.SIGTERM)
    _, err = job.communicate(timeout=200)
    done = steps_of(run)
    assert job.returncode == EXIT_CODE == 143
    assert err.splitlines() == [
        "SIGTERM: this step is finished and saved first; a second SIGTERM stops at once",
        f"SIGTERM: step {done} is saved; go on with: aer-train train --resume {run}",
    ]
    newest = checkpoint.latest(run)
    assert newest is not None and newest.name == f"step_{done:06d}"
    assert main(["train", "--resume", str(run), "--run.steps", str(done + 1)]) == 0
    file = write(tmp_path / "whole.json", replace(config, run=replace(config.run, steps=done + 1, out=str(whole))))
    assert main(["train", "--config", str(file)]) == 0
    found, expected = (load_file(folder / "checkpoints" / f"step_{done + 1:06d}" / "model.safetensors") for folder in (run, whole))
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert read_evals(run) == read_evals(whole) and list(read_evals(run)) == list(range(done + 2))


@pytest.mark.slow
def test_a_second_one_stops_at_once(model_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    reward = RewardConfig(kind="tests.train.rewards.slow", timeout=500.0, workers=1)
    job = start(write(tmp_path / "config.json", config_of(model_folder, run, optim=OPTIM, reward=reward)))
    wait_for(lambda: (run / "config.json").exists())
    wait_for(lambda: bool(subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True).stdout))  # the process of the reward
    os.kill(job.pid, signal.SIGTERM)
    time.sleep(1.0)
    assert job.poll() is None, "it would finish the step"
    os.kill(job.pid, signal.SIGTERM)
    _, err = job.communicate(timeout=20)
    assert job.returncode == -signal.SIGTERM and checkpoint.latest(run) is None
    assert err == "SIGTERM: this step is finished and saved first; a second SIGTERM stops at once\n"


@pytest.mark.slow
def test_all_ranks_stop_at_the_same_step(model_folder: Path, tmp_path: Path) -> None:
    """Also when the signal reaches only one of them. Sizes that nobody gave are those that all found."""
    run = tmp_path / "run"
    config = config_of(model_folder, run, optim=replace(OPTIM, tokens_per_microbatch=None))
    rollout = replace(config.rollout, batch_size=None)
    file = write(tmp_path / "config.json", replace(config, rollout=rollout, run=replace(config.run, steps=100_000, save_every=0)))
    job = torchrun("-m", "aer_train", "train", "--config", file)
    wait_for(lambda: steps_of(run) >= 2)
    ranks = subprocess.run(["pgrep", "-P", str(job.pid), "-f", "aer_train train"], capture_output=True, text=True).stdout.split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGTERM)
    _, err = job.communicate(timeout=200)
    assert job.returncode != 0
    done, found = len(read_metrics(run)), read_config(run)
    assert (found["optim"]["tokens_per_microbatch"], found["rollout"]["batch_size"]) == (16384, 256)
    assert f"SIGTERM: step {done} is saved; go on with: aer-train train --resume {run}" in err
    newest = checkpoint.latest(run)
    assert newest is not None and newest.name == f"step_{done:06d}"
    assert "Preempted" not in err and "rank 1 error" not in err, "torchrun's own report aside, one line"
    assert main(["train", "--resume", str(run), "--run.steps", str(done + 1)]) == 0
