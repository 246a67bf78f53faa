"""Trackers that receive the metrics beside metrics.jsonl, and a table of samples where it is asked for."""

from __future__ import annotations

import dataclasses
import importlib
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from aer_train.config.tree import TrainConfig
from aer_train.run.files import read_json, write_atomic
from aer_train.types import Row

STATE = "trackers.json"
"""File of a run folder: what its trackers call it, so that a resumed run goes on there."""


class Tracker(Protocol):
    """One of them, for one run."""

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Send the metrics of a step."""

    def table(self, step: int, rows: list[Row]) -> None:
        """Send samples of a step."""

    def close(self) -> None:
        """Send what is left."""


class _TensorBoard:
    def __init__(self, out: Path, config: TrainConfig, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def table(self, step: int, rows: list[Row]) -> None:
        head, line = "|".join(rows[0]), "|".join("-" for _ in rows[0])
        body = ("|".join(_cell(value) for value in row.values()) for row in rows)
        self._writer.add_text("samples", "\n".join(f"|{cells}|" for cells in (head, line, *body)), step)

    def close(self) -> None:
        self._writer.close()


class _WandbLike:
    """A client in the form of wandb's. A step that it has already keeps what it has."""

    def __init__(self, module: Any, **options: Any) -> None:
        self._module, self.run = module, module.init(**options)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self.run.log(numbers, step=step)

    def table(self, step: int, rows: list[Row]) -> None:
        import pandas as pd

        self.run.log({"samples": self._module.Table(dataframe=pd.DataFrame(rows))}, step=step)

    def close(self) -> None:
        self.run.finish()


def _wandb(out: Path, config: TrainConfig, step: int) -> Tracker:
    known = _known(out, "wandb") or {"id": secrets.token_hex(4), "project": config.run.project, "entity": config.run.entity}
    _keep(out, "wandb", known)  # first: a run that dies at its start goes on under this id
    return _WandbLike(importlib.import_module("wandb"), name=out.name, resume="allow", config=dataclasses.asdict(config), **known)


def _trackio(out: Path, config: TrainConfig, step: int) -> Tracker:
    known = _known(out, "trackio")
    where = known or {"project": config.run.project, "name": out.name}
    module, settings = importlib.import_module("trackio"), dataclasses.asdict(config)
    tracker = _WandbLike(module, resume="allow" if known else "never", config=settings, **where)
    _keep(out, "trackio", {**where, "name": tracker.run.name})  # another one where the name was taken
    return tracker


TRACKERS: dict[str, Callable[[Path, TrainConfig, int], Tracker]] = {"tensorboard": _TensorBoard, "wandb": _wandb, "trackio": _trackio}
"""From a run folder, its configuration and the steps behind it to its tracker, by the name in run.sinks."""


def _known(out: Path, name: str) -> dict[str, Any] | None:
    """What a tracker calls this run."""
    path = out / STATE
    return read_json(path).get(name) if path.is_file() else None


def _keep(out: Path, name: str, known: dict[str, Any]) -> None:
    path = out / STATE
    others = read_json(path) if path.is_file() else {}
    write_atomic(path, json.dumps(others | {name: known}, indent=2))


def _cell(value: Any) -> str:
    """A value in a table of Markdown."""
    return str(value).replace("|", "\\|").replace("\n", "<br>")
