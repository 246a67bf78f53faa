"""The run folder: what a run leaves behind, written so that a kill at any moment leaves it readable.

config.json  data.json (digests of the prompts)  metrics.jsonl (one row a step)
samples/step_000001.parquet  eval/step_000000.json and .parquet (its samples)
checkpoints/  report.html  plots/  trackers.json  lock
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import TextIO

from aer_train import dist
from aer_train.config.tree import TrainConfig
from aer_train.run.files import eval_json, read_json, write_atomic, write_parquet
from aer_train.run.lock import LOCK, RunLock
from aer_train.run.trackers import TRACKERS, Tracker
from aer_train.types import Row

FOLDERS = ("samples", "eval")
"""What every run folder has from its beginning."""


class Recorder:
    """Writes the run folder, and forwards metrics to the trackers that the configuration names. Only the main rank's does so."""

    def __init__(self, out: Path, config: TrainConfig, resume_step: int | None = None, lock: RunLock | None = None) -> None:
        """Make the folder, or take an existing one back to the end of `resume_step` (0: to its beginning).

        Args:
            lock: of the folder, which a new one is made with; `close` gives it back.
        Raises:
            ValueError - the folder exists and the run is not resumed, or not every rank sees it; ImportError - a tracker is not installed.
        """
        self.out = out
        self._lock = lock or RunLock()
        self._trackers: list[Tracker] = []
        self._metrics: TextIO | None = None
        self._shown = config.run.sink_samples
        dist.from_main(lambda: self._open(config, resume_step))
        if not all(dist.all_gather((out / "config.json").is_file())):
            raise ValueError(f"run.out must be on a file system that every machine sees, got {out}")

    def _open(self, config: TrainConfig, resume_step: int | None) -> None:
        for name in config.run.sinks:
            if importlib.util.find_spec(name) is None:
                raise ImportError(f'run.sinks {name} needs: pip install "aer-rl[track]"')
        settings = json.dumps(dataclasses.asdict(config), indent=2)
        if resume_step is None:
            _make_folder(self.out, settings, self._lock)
        else:
            self._take_back(resume_step)
            write_atomic(self.out / "config.json", settings)
        self._metrics = (self.out / "metrics.jsonl").open("a", encoding="utf-8")
        self._trackers = [TRACKERS[name](self.out, config, resume_step or 0) for name in config.run.sinks]

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, row: Row) -> None:
        """Append a row of metrics; numbers that are not finite become null."""
        if self._metrics is None:
            return
        clean = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        self._metrics.write(json.dumps(clean) + "\n")
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        numbers = {name: float(value) for name, value in clean.items() if isinstance(value, int | float) and name != "step"}
        for tracker in self._trackers:
            tracker.log(int(row["step"]), numbers)

    def write_samples(self, step: int, rows: list[Row]) -> None:
        """Write the samples of a step to samples/step_<step>.parquet, and send run.sink_samples of them, from all over the step, to the
        trackers."""
        if self._metrics is None:
            return
        write_parquet(self.out / "samples" / f"step_{step:06d}.parquet", rows)
        if self._shown:
            shown = rows[:: max(1, len(rows) // self._shown)][: self._shown]
            for tracker in self._trackers:
                tracker.table(step, shown)

    def write_eval(self, step: int, result: Row, rows: list[Row] | None = None) -> None:
        """Write an evaluation to eval/step_<step>.json, and its samples beside it."""
        if self._metrics is None:
            return
        if rows:
            write_parquet(self.out / "eval" / f"step_{step:06d}.parquet", rows)
        write_atomic(self.out / "eval" / f"step_{step:06d}.json", eval_json(result))

    def has_eval(self, step: int) -> bool:
        """Whether the evaluation of a step is there, on every rank the same."""
        return dist.from_main(lambda: (self.out / "eval" / f"step_{step:06d}.json").is_file())

    def write_data(self, about: Row) -> Row | None:
        """Write what the run is given to data.json; return what was there, of the same run before it was resumed."""
        return dist.from_main(lambda: self._write_data(about))

    def close(self) -> None:
        """Close the files and the trackers."""
        if self._metrics is not None:
            self._metrics.close()
        for tracker in self._trackers:
            tracker.close()
        self._lock.close()

    def _write_data(self, about: Row) -> Row | None:
        path = self.out / "data.json"
        before = read_json(path) if path.is_file() else None
        write_atomic(path, json.dumps(about, indent=2))
        return before

    def _take_back(self, step: int) -> None:
        path = self.out / "metrics.jsonl"
        rows = _rows(path)[:step] if path.exists() else []
        good = next((number for number, row in enumerate(rows) if row["step"] != number + 1), len(rows))
        if good < step:
            raise ValueError(
                f"{path} must hold the rows of steps 1 to {step}, got line {good + 1} missing or damaged: "
                f"mend it, or delete the checkpoints after step {good} to go back"
            )
        for name in FOLDERS:
            (self.out / name).mkdir(exist_ok=True)
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
        for file in [*(self.out / "samples").iterdir(), *(self.out / "eval").iterdir()]:
            number = re.fullmatch(r"step_(\d+)\.\w+", file.name)
            if number is None or int(number[1]) > step:
                file.unlink()


def is_vacant(out: Path) -> bool:
    """Whether a run can begin in a folder: there is none, or nothing in it but what a start leaves that was killed."""
    if not out.exists():
        return True
    return out.is_dir() and all(path.name in (LOCK, ".config.json.tmp") for path in out.iterdir())


def _make_folder(out: Path, settings: str, lock: RunLock) -> None:
    """Make a run folder with its configuration, or nothing: without one, a run could neither be started again nor resumed."""
    if not is_vacant(out):
        raise ValueError(f"run.out must not exist yet (or be an empty folder), got {out}")
    if out.exists():  # perhaps a link or a mounted disk, which no other folder can replace
        lock.take(out)
        write_atomic(out / "config.json", settings)
        for name in FOLDERS:
            (out / name).mkdir(exist_ok=True)
        return
    staging = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for name in FOLDERS:
            (staging / name).mkdir(parents=True)
        lock.take(staging)
        write_atomic(staging / "config.json", settings)
        staging.rename(out)
    except BaseException:
        lock.close()
        shutil.rmtree(staging, ignore_errors=True)
        raise


def read_metrics(run: Path) -> list[Row]:
    """Return the rows of a run.

    Raises:
        ValueError - there is no such run, or it has no row yet.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"run must be a run folder with a metrics.jsonl, got {run}")
    rows = _rows(path)
    if not rows:
        raise ValueError(f"run must have at least one recorded step, got {run}")
    return rows


def read_config(run: Path) -> Row:
    """Return the resolved configuration of a run as nested dictionaries.

    Raises:
        ValueError - there is none.
    """
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(f"run must be a run folder with a config.json, got {run}")
    return read_json(path)


def read_evals(run: Path) -> dict[int, Row]:
    """Return the evaluations of a run by step, in order."""
    return {int(path.stem.removeprefix("step_")): read_json(path) for path in sorted((run / "eval").glob("step_*.json"))}


def _rows(path: Path) -> list[Row]:
    """Rows up to the first torn line: a kill can only tear the last one."""
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(row, dict) or "step" not in row:
            break
        rows.append(row)
    return rows
