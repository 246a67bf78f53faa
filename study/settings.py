"""What a run was begun with, so that one made with other settings is never taken for it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aer_train.config import TrainConfig
from aer_train.settings import leaves
from study.config import Matrix

PLACES = {"model.name", "run.out"}
"""Where things lie: no part of what a run is."""


def settings_path(run: Path) -> Path:
    """Where it is written down what a run was begun with: beside its folder."""
    return Path(f"{run}.json")


def settings_of(config: TrainConfig, matrix: Matrix) -> dict[str, Any]:
    """Return all that decides the numbers of a run, by dotted name."""
    tree = asdict(config) | {
        "study": {"samples": matrix.samples, "splits": matrix.splits, "eval_limit": matrix.eval_limit, "probes": matrix.probes}
    }
    return {name: value for name, value in json.loads(json.dumps(dict(leaves(tree)))).items() if name not in PLACES}


def check_settings(run: Path, settings: dict[str, Any]) -> None:
    """Prove that a run that was begun, or is done, had these settings: it would be taken for another otherwise.

    Raises:
        ValueError - it had not.
    """
    if not settings_path(run).exists():
        return
    begun = json.loads(settings_path(run).read_text(encoding="utf-8"))
    for name in [name for name in settings if begun.get(name) != settings[name]][:1]:
        raise ValueError(f"--out must hold runs with {name} {settings[name]}, as the matrix says now, got {begun.get(name)} in {run}")
