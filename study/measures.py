"""What is asked of a run: numbers of its last policy, and of the end of its curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from study.evaluate import pass_at
from study.intervals import Number
from study.records import Record

MEASURES = {
    "hard pass@1": ("hard", 1),
    "hard pass@16": ("hard", 16),
    "hard pass@64": ("hard", 64),
    "easy pass@1": ("easy", 1),
    "easy pass@16": ("easy", 16),
}
"""Measure: (tier, k). A k above the number of samples is that number."""

SHOWN = ("hard pass@1", "hard pass@16", "easy pass@1")
"""Those of a table or figure that has room for few."""

LAST = 20
"""Steps at the end of a run over which entropy and coefficient are averaged."""


def told_by(records: Sequence[Record]) -> list[str]:
    """Return the measures that have as many samples in every run as they name; without a run there is none."""
    samples = min((record["samples"] for record in records), default=0)
    return [name for name, (_, k) in MEASURES.items() if k <= samples]


def evaluated(records: Sequence[Record]) -> str | None:
    """Return where every run was evaluated, on test prompts rather than on those of validation; None where there is no run."""
    splits = (split for split in ("test", "validation") if records and all(split in r["right"] for r in records if r["diverged"] is None))
    return next(splits, None)


def measured(split: str, name: str) -> Number:
    """Return a measure of the last policy on a split, as a function of the record."""
    return solved(split, *MEASURES[name])


def solved(split: str, tier: str, k: int) -> Number:
    """Return pass@k of the last policy on a tier of a split, as a function of the record; a run that diverged solves nothing."""

    def number(record: Record) -> float:
        if record["diverged"] is not None:
            return 0.0
        return pass_at(record["right"][split][tier], record["samples"], min(k, record["samples"]))

    return number


def score(record: Record) -> float:
    """Return what a tuned value is chosen by in `docs/study_plan.md`: the mean of hard and easy pass@1 on validation prompts."""
    return average([measured("validation", f"{tier} pass@1")(record) for tier in ("hard", "easy")])


def end(record: Record, curve: str) -> float:
    """Return the mean of a curve over its last steps, NaN where it has no value there."""
    values = [value for value in record["curves"][curve][-LAST:] if value is not None]
    return average(values) if values else math.nan


def kept(record: Record) -> float:
    """Return the entropy at the end as a share of that at the start."""
    return end(record, "entropy") / record["curves"]["entropy"][0]


def bonus_share(record: Record) -> float:
    """Return the mean share of the bonus in the norm of the gradient at the logits."""
    return average([value or 0.0 for value in record["curves"]["bonus_share"]])


def average(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
