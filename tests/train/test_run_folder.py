"""The run folder survives kills, and the console says what matters."""

import json
import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from aer_train.config.tree import RunConfig, TrainConfig
from aer_train.monitor.console import eval_table, numbers
from aer_train.run.files import write_atomic
from aer_train.run.folder import Recorder, read_config, read_evals, read_metrics
from aer_train.run.lock import LOCK, RunLock

CONFIG = TrainConfig()
ROW = {"reward/mean": 0.5, "reward/zero_variance_frac": 0.2, "tokens/truncated_frac": 0.0, "entropy/mean": 1.0, "entropy/target": 0.85,
       "entropy/coef": 0.1, "perf/tokens_per_second": 1234.5}  # fmt: skip


def fill(run, steps):
    with Recorder(run, CONFIG) as recorder:
        for step in steps:
            recorder.log({"step": step, **ROW})
            recorder.write_samples(step, [{"step": step, "response": "a<b", "reward": 1.0}])
            recorder.write_eval(step, {"step": step})


def test_folder_and_reading_back(tmp_path):
    run = tmp_path / "run"
    fill(run, [1, 2])
    assert [row["step"] for row in read_metrics(run)] == [1, 2]
    assert read_config(run)["optim"]["lr"] == CONFIG.optim.lr
    assert read_evals(run) == {1: {"step": 1}, 2: {"step": 2}}
    assert pq.read_table(run / "samples" / "step_000002.parquet").to_pylist() == [{"step": 2, "response": "a<b", "reward": 1.0}]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    with Recorder(tmp_path / "run", CONFIG) as recorder:
        recorder.log({"step": 1, "policy/ratio_max": float("inf")})
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text()) == {"step": 1, "policy/ratio_max": None}


def test_resuming_takes_the_folder_back(tmp_path):
    """A torn last line and everything after the checkpoint disappear; what came before stays as it was."""
    run = tmp_path / "run"
    fill(run, [1, 2, 3, 4])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rewa')
    (run / "samples" / ".step_000005.parquet.tmp").write_bytes(b"half")
    with Recorder(run, CONFIG, resume_step=2) as recorder:
        assert [row["step"] for row in read_metrics(run)] == [1, 2]
        recorder.log({"step": 3, **ROW})
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3]
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step_000001.parquet", "step_000002.parquet"]
    assert list(read_evals(run)) == [1, 2]


@pytest.mark.parametrize("damage", ["torn", "missing", "twice", "none"])
def test_rows_before_the_checkpoint_must_be_there(tmp_path, damage):
    """A kill can only tear the last row: anything else is damage from outside, which going on would make permanent."""
    run = tmp_path / "run"
    fill(run, [1, 2, 3])
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    text = {"torn": lines[0] + lines[1][:9] + "\n" + lines[2], "missing": lines[0] + lines[2], "twice": lines[0] * 2 + lines[2], "none": ""}
    path.write_text(text[damage])
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    good = 0 if damage == "none" else 1
    with pytest.raises(
        ValueError, match=rf"steps 1 to 3, got line {good + 1} missing or damaged: .* checkpoints after step {good} to go back"
    ):
        Recorder(run, TrainConfig(run=RunConfig(steps=7)), resume_step=3)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before, "nothing is overwritten"


def test_a_folder_is_made_with_its_configuration_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        Recorder(tmp_path / "run", CONFIG)
    assert not list(tmp_path.iterdir())


def test_a_damaged_evaluation_is_named(tmp_path):
    run = tmp_path / "run"
    fill(run, [1])
    (run / "eval" / "step_000001.json").write_text('{"step": 1')
    with pytest.raises(ValueError, match=r"eval/step_000001.json must be JSON, got: "):
        read_evals(run)


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine").write_text("text")
    with pytest.raises(ValueError, match=r"run\.out must not exist yet \(or be an empty folder\), got "):
        Recorder(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("left", [(), (LOCK, ".config.json.tmp")], ids=["new", "of a start that was killed"])
def test_an_empty_folder_is_used(tmp_path, left):
    for name in left:
        (tmp_path / name).touch()
    fill(tmp_path, [1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "eval", LOCK, "metrics.jsonl", "samples"]


def test_a_folder_is_locked_from_its_beginning(tmp_path):
    run = tmp_path / "run"
    with Recorder(run, CONFIG):
        holder = rf"got {run}, which process {os.getpid()} on .+ trains in"
        with pytest.raises(ValueError, match=rf"run\.out must not be in use by another process, {holder}"):
            RunLock().take(run)
        assert read_config(run), "reading needs no lock"
    lock = RunLock()
    lock.take(run)
    lock.close()
    assert (run / LOCK).read_text() == ""


def test_the_lock_ends_with_its_process(tmp_path):
    """A kill is enough, also when a child lives on."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom aer_train.run.lock import RunLock\n"
        "RunLock().take(Path(sys.argv[1]))\nchild = os.fork()\nif child:\n    print(child, flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    with pytest.raises(ValueError, match=rf"which process {process.pid} on "):
        RunLock().take(tmp_path)
    process.kill()
    process.wait()
    try:
        RunLock().take(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_file_system_without_locks_is_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError("not supported")))
    fill(tmp_path / "run", [1])
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1]


def test_every_rank_must_see_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("aer_train.dist.all_gather", lambda seen: [seen, False])
    with pytest.raises(ValueError, match=r"run\.out must be on a file system that every machine sees, got "):
        Recorder(tmp_path / "run", CONFIG)


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_missing_runs(tmp_path):
    with pytest.raises(ValueError, match=r"run must be a run folder with a metrics\.jsonl, got "):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"torn')
    with pytest.raises(ValueError, match="run must have at least one recorded step, got "):
        read_metrics(tmp_path)


def test_tensorboard_sink(tmp_path):
    pytest.importorskip("tensorboard", reason="the track extra is not installed")
    config = TrainConfig(run=RunConfig(sinks=("tensorboard",)))
    with Recorder(tmp_path / "run", config) as recorder:
        recorder.log({"step": 1, **ROW})
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_a_tracker_that_is_not_installed_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ImportError, match=r'run\.sinks wandb needs: pip install "aer-rl\[track\]"'):
        Recorder(tmp_path / "run", TrainConfig(run=RunConfig(sinks=("wandb",))))
    assert not (tmp_path / "run").exists()


def test_numbers_line():
    assert numbers(ROW) == "reward 0.500  H 1.000 -> 0.850  coef 0.100  1,234 tok/s"
    assert numbers(ROW | {"entropy/target": None}) == "reward 0.500  H 1.000  coef 0.100  1,234 tok/s"


def test_eval_table_has_a_row_for_each_tier():
    shares = {curve: {str(k): 0.25 * k for k in range(1, 5)} for curve in ("pass@k", "majority@k")}
    tier = {"problems": 4, "accuracy": 0.25, "accuracy_interval": [0.0, 0.5], "truncated_frac": 0.125, "response_tokens": 9.6, **shares}
    mean = {"accuracy": 0.75, "accuracy_interval": [0.5, 1.0], **shares}
    table = eval_table({"step": 3, "samples": 4, "temperature": 1.0, "tiers": {"easy": tier, "all": tier}, "mean": mean})
    rows = {column.header: list(column.cells) for column in table.columns}
    assert table.title == "evaluation at step 3, 4 samples at T = 1"
    assert rows == {
        "tier": ["easy", "all", "mean"], "problems": ["4", "4", ""], "avg@4": ["0.250", "0.250", "0.750"],
        "95 %": ["0.000..0.500", "0.000..0.500", "0.500..1.000"], "pass@2": 3 * ["0.500"], "pass@4": 3 * ["1.000"], "maj@4": 3 * ["1.000"],
        "cut": ["0.125", "0.125", ""], "tokens": ["10", "10", ""],
    }  # fmt: skip
