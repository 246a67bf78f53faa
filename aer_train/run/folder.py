"""The run folder: what a run leaves behind, written so that a kill at any moment leaves it readable.

config.json  metrics.jsonl (one row a step)  samples/step_000001.parquet  eval/step_000000.json and .parquet (its samples)
checkpoints/  report.html  plots/
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from aer_train import dist
from aer_train.config import TrainConfig

Row = dict[str, Any]

FOLDERS = ("samples", "eval")
"""What every run folder has from its beginning."""


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that it holds either its old or its new content, whatever happens."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_parquet(path: Path, rows: list[Row]) -> None:
    """Write rows with the same columns, atomically. A column of nothing but None is text, so that several files make one table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows)
    table = table.cast(pa.schema([field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in table.schema]))
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    write_atomic(path, buffer.getvalue().to_pybytes())


def read_parquet(path: Path, columns: list[str] | None = None) -> list[Row]:
    """Return the rows of a parquet file, with some or all of their columns."""
    import pyarrow.parquet as pq

    return pq.read_table(path, columns=columns).to_pylist()


def num_rows(path: Path) -> int:
    """Return the number of rows of a parquet file."""
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


def eval_json(result: Row) -> str:
    """Return an evaluation as JSON: indented, with a line for each problem at the end."""
    text = json.dumps({name: value for name, value in result.items() if name != "problems"}, indent=2)
    if "problems" not in result:
        return text
    lines = ",\n    ".join(json.dumps(problem) for problem in result["problems"])
    return f'{text[:-2]},\n  "problems": [\n    {lines}\n  ]\n}}\n'


class Recorder:
    """Writes the run folder, and forwards metrics to the trackers that the configuration names. Only the main rank's does so."""

    def __init__(self, out: Path, config: TrainConfig, resume_step: int | None = None) -> None:
        """Make the folder, or take an existing one back to the end of `resume_step` (0: to its beginning).

        Raises:
            ValueError - the folder exists and the run is not resumed, or not every rank sees it; ImportError - a tracker is not installed.
        """
        self.out = out
        self._sinks: list[Sink] = []
        self._metrics: TextIO | None = None
        dist.from_main(lambda: self._open(config, resume_step))
        if not all(dist.all_gather((out / "config.json").is_file())):
            raise ValueError(f"run.out must be on a file system that every machine sees, got {out}")

    def _open(self, config: TrainConfig, resume_step: int | None) -> None:
        for name in config.run.sinks:
            if importlib.util.find_spec(name) is None:
                raise ImportError(f'run.sinks {name} needs: pip install "aer-rl[track]"')
        settings = json.dumps(dataclasses.asdict(config), indent=2)
        if resume_step is None:
            _make_folder(self.out, settings)
        else:
            self._take_back(resume_step)
            write_atomic(self.out / "config.json", settings)
        self._metrics = (self.out / "metrics.jsonl").open("a", encoding="utf-8")
        self._sinks = [SINKS[name](self.out, config) for name in config.run.sinks]

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
        for sink in self._sinks:
            sink(int(row["step"]), numbers)

    def write_samples(self, step: int, rows: list[Row]) -> None:
        """Write the samples of a step to samples/step_<step>.parquet."""
        if self._metrics is not None:
            write_parquet(self.out / "samples" / f"step_{step:06d}.parquet", rows)

    def write_eval(self, step: int, result: Row, rows: list[Row] | None = None) -> None:
        """Write an evaluation to eval/step_<step>.json, and its samples beside it."""
        if self._metrics is None:
            return
        if rows:
            write_parquet(self.out / "eval" / f"step_{step:06d}.parquet", rows)
        write_atomic(self.out / "eval" / f"step_{step:06d}.json", eval_json(result))

    def close(self) -> None:
        """Close the files and the trackers."""
        if self._metrics is not None:
            self._metrics.close()
        for sink in self._sinks:
            sink(-1, {})

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


def _make_folder(out: Path, settings: str) -> None:
    """Make a run folder with its configuration, or nothing: without one, a run could neither be started again nor resumed."""
    if out.exists():
        raise ValueError(f"run.out must not exist yet, got {out}")
    staging = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for name in FOLDERS:
            (staging / name).mkdir(parents=True)
        write_atomic(staging / "config.json", settings)
        staging.rename(out)
    except BaseException:
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
    return _read_json(path)


def read_evals(run: Path) -> dict[int, Row]:
    """Return the evaluations of a run by step, in order."""
    return {int(path.stem.removeprefix("step_")): _read_json(path) for path in sorted((run / "eval").glob("step_*.json"))}


def _read_json(path: Path) -> Row:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, got: {error}") from error


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


Sink = Callable[[int, dict[str, float]], None]
"""(step, numbers); an empty dictionary closes it."""


def _tensorboard(out: Path, config: TrainConfig) -> Sink:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard"))

    def send(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush() if numbers else writer.close()

    return send


def _wandb_like(module: str) -> Callable[[Path, TrainConfig], Sink]:
    def make(out: Path, config: TrainConfig) -> Sink:
        run = importlib.import_module(module).init(project="aer", name=out.name, config=dataclasses.asdict(config))
        return lambda step, numbers: run.log(numbers, step=step) if numbers else run.finish()

    return make


SINKS: dict[str, Callable[[Path, TrainConfig], Sink]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb_like("wandb"),
    "trackio": _wandb_like("trackio"),
}
