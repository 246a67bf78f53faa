"""The options that a run was begun with, so that one made with others is never taken for it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aer_train.config.parse import leaves
from aer_train.config.tree import TrainConfig
from study.config import Matrix

PATHS = {"model.name", "run.out"}
"""Where things lie: no part of what a run is."""


def options_path(run: Path) -> Path:
    """Where the options of a run are written down: beside its folder."""
    return Path(f"{run}.json")


def options_of(config: TrainConfig, matrix: Matrix) -> dict[str, Any]:
    """Return all that decides the numbers of a run, by dotted name."""
    tree = asdict(config) | {
        "study": {"samples": matrix.samples, "splits": matrix.splits, "eval_limit": matrix.eval_limit, "probes": matrix.probes}
    }
    found = {name: value for name, value in json.loads(json.dumps(dict(leaves(tree)))).items() if name not in PATHS}
    return found | {"data.train": found["data.train"].removeprefix(f"{config.model.name}/")}  # a real model's problems are with its policy


def check_options(run: Path, options: dict[str, Any]) -> None:
    """Prove that a run that was begun, or is done, had these options: it would be taken for another otherwise.

    Raises:
        ValueError - it had not.
    """
    if not options_path(run).exists():
        return
    begun = json.loads(options_path(run).read_text(encoding="utf-8"))
    for name in [name for name in options if begun.get(name) != options[name]][:1]:
        raise ValueError(f"--out must hold runs with {name} {options[name]}, as the matrix says now, got {begun.get(name)} in {run}")
