"""Records as rows of a parquet file, and back: what is read equals what was written.

A curve is kept as whole numbers (`study.digits`). Of one that follows from others but for rounding only the difference is kept, and of
`controlled`, which repeats one of two others as a rule, the name of that one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aer_train.run.files import read_parquet, write_parquet
from aer_train.types import Row
from study.digits import rank, ranked

FORMULAS: dict[str, tuple[tuple[str, ...], Callable[..., float]]] = {
    "per_response": (("entropy", "length"), lambda entropy, length: entropy * length),
    "predicted_change": (("policy_slope", "coef", "bonus_slope"), lambda policy, coef, bonus: policy + coef * bonus),
}
"""Curve: those that it follows from, none of them a key here, and how."""

HELD = ("entropy", "per_response")
"""What `controlled` may repeat."""

MAYBE = ("seconds", "reach", "training_cpu")
"""Keys that not every record has."""

TEXT = ("setting", "method", "diverged", "held")

Curve = Sequence[float | None]


def write_packed(records: list[Row], path: Path) -> None:
    """Write records as a parquet file.

    Raises:
        ValueError - they would not be read as they are, since a curve has more than four digits, say.
    """
    rows = [_packed(record) for record in records]
    names = dict.fromkeys(name for row in rows for name in row)
    lists = {f"curves.{name}" for row in rows for name in row["curves"]}
    lists |= {f"right.{split}.{tier}" for record in records for split, tiers in record["right"].items() for tier in tiers}
    streams = [f"{name}.list.element" for name in sorted(lists)]
    table = [{name: row.get(name) for name in names} for row in rows]
    write_parquet(path, table, compression_level=19, use_dictionary=list(TEXT), use_byte_stream_split=streams)
    if read_packed(path) != records:
        path.unlink()
        raise ValueError(f"records must be read from {path} as they are, got some with more digits or other keys than it can keep")


def read_packed(path: Path) -> list[Row]:
    """Return the records of a file made by `write_packed`."""
    return [_unpacked(row) for row in read_parquet(path)]


def _packed(record: Row) -> Row:
    curves = record["curves"]
    held = next((name for name in HELD if name in curves and curves[name] == curves.get("controlled")), None)
    kept = {name: _less(curve, _followed(name, curves)) for name, curve in curves.items() if not (held and name == "controlled")}
    return record | {"curves": kept, "held": held, "right": record["right"] or None}


def _unpacked(row: Row) -> Row:
    held, kept, steps = row.pop("held"), _known(row["curves"]), row["steps"]
    curves = {name: _more(kept[name], [], steps) for name in kept if name not in FORMULAS}
    curves |= {name: _more(kept[name], _followed(name, curves), steps) for name in kept if name in FORMULAS}
    if held:
        curves["controlled"] = list(curves[held])
    record = {name: value for name, value in row.items() if name not in MAYBE or value is not None}
    return record | {"curves": curves, "right": _known(row["right"] or {})}


def _followed(name: str, curves: Mapping[str, Curve]) -> list[int]:
    """Return the ranks of what a curve's formula gives, 0 where a value is missing; nothing for a curve without one."""
    if name not in FORMULAS:
        return []
    needed, formula = FORMULAS[name]
    if not curves.keys() >= set(needed):
        return []
    return [0 if None in values else rank(formula(*values)) for values in zip(*(curves[other] for other in needed), strict=True)]


def _less(curve: Curve, followed: list[int]) -> list[int | None]:
    """Return what is kept of a curve; nothing of one without a value."""
    if set(curve) == {None}:
        return []
    return [None if value is None else rank(value) - base for value, base in zip(curve, followed or [0] * len(curve), strict=True)]


def _more(kept: list[int | None], followed: list[int], steps: int) -> list[float | None]:
    """Return the curve of which `_less` kept this."""
    if not kept:
        return [None] * steps
    return [None if less is None else ranked(less + base) for less, base in zip(kept, followed or [0] * len(kept), strict=True)]


def _known(row: Row) -> Row:
    """Return what a row has: parquet gives every row the keys of all."""
    return {name: value for name, value in row.items() if value is not None}
