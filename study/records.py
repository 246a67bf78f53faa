"""The record of a run: small enough to be committed, and all that tables and plots are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aer_train.record import read_metrics
from study.config import Job
from study.held_out import Counts

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

DIGITS = 4

Record = dict[str, Any]


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
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.rglob(DONE))]
    if not records:
        raise ValueError(f"--out must hold at least one finished run, got {out}")
    return records


def write_records(records: list[Record], path: Path) -> None:
    """Write one record a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def by_place(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records of each place: task and size, learning rate, and the share of hard prompts where there are several."""
    several = len({record["hard_share"] for record in records}) > 1
    found: dict[str, list[Record]] = {}
    for record in records:
        name = record["setting"] if record["lr_scale"] == 1 else f"{record['setting']}, lr x {record['lr_scale']:g}"
        found.setdefault(f"{name}, {100 * record['hard_share']:g} % hard" if several else name, []).append(record)
    return found


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")
