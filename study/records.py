"""The record of a run: small enough to be committed, and all that tables and plots are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aer_train.run.folder import read_metrics
from study.config import Job
from study.digits import rounded
from study.evaluate import Counts
from study.packing import read_packed, write_packed

DONE = "record.json"
"""In a run folder, once the run is finished."""

CURVES = {
    "entropy": "entropy/mean",
    "per_response": "entropy/per_response",
    "controlled": "entropy/controlled",
    "target": "entropy/target",
    "coef": "entropy/coef",
    "easy": "reward/tier/easy",
    "hard": "reward/tier/hard",
    "easy_entropy": "entropy/tier/easy",
    "hard_entropy": "entropy/tier/hard",
    "length": "tokens/response_mean",
    "bonus_share": "entropy/bonus_share",
    "predicted_change": "entropy/predicted_change",
    "policy_slope": "entropy/policy_slope",
    "bonus_slope": "entropy/bonus_slope",
    "grad_norm": "optim/grad_norm",
}
"""Name of a curve in the record: name of the metric. One number a step."""

Record = dict[str, Any]

Place = tuple[str, float, float]
"""A setting, the factor on its learning rate, and the share of hard prompts."""


def summarize(job: Job, run: Path, right: dict[str, Counts], samples: int, diverged: str | None) -> Record:
    """Return the record of a run.

    Args:
        right: right samples of each held-out prompt by split and tier, out of `samples`.
        diverged: what was not finite, or None.
    """
    rows = read_metrics(run) if (run / "metrics.jsonl").stat().st_size else []
    return {
        **asdict(job),
        "steps": len(rows),
        "diverged": diverged,
        "curves": {name: [_round(row.get(metric)) for row in rows] for name, metric in CURVES.items()},
        "samples": samples,
        "right": right,
    }


def read_records(out: Path) -> list[Record]:
    """Return the records below a folder, or of a file made by `write_records`.

    Raises:
        ValueError - there is none.
    """
    if out.is_file():
        return read_packed(out)
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.rglob(DONE))]
    if not records:
        raise ValueError(f"--out must hold at least one finished run, got {out}")
    return records


def write_records(records: list[Record], path: Path) -> None:
    """Write a parquet file of records, one a row.

    Raises:
        ValueError - a record has what the file cannot keep.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_packed(records, path)


def place_of(record: Record) -> Place:
    """Return the place of a run."""
    return record["setting"], record["lr_scale"], record["hard_share"]


def pair_of(record: Record) -> tuple[Place, int]:
    """Return what two runs must share to be compared: a place and a seed."""
    return place_of(record), record["seed"]


def by_place(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records of each place by its name, which has the share of hard prompts where there are several."""
    several = len({record["hard_share"] for record in records}) > 1
    found: dict[str, list[Record]] = {}
    for record in records:
        setting, lr_scale, hard_share = place_of(record)
        name = setting if lr_scale == 1 else f"{setting}, lr x {lr_scale:g}"
        found.setdefault(f"{name}, {100 * hard_share:g} % hard" if several else name, []).append(record)
    return found


def _round(value: float | None) -> float | None:
    return None if value is None else rounded(value)
