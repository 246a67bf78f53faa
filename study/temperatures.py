"""What the last policies solve when they are sampled at other temperatures."""

from __future__ import annotations

from collections.abc import Sequence

from study.intervals import mean
from study.measures import MEASURES, SHOWN, measured
from study.records import Record
from study.tables import by_method, difference_cell


def temperature_table(records: Sequence[Record], split: str, other: str | None = None) -> str:
    """Every measure of every method, a column a temperature; with `other` the difference to this method, pair by pair.

    Args:
        records: evaluated on the same splits, those that diverged apart.
        split: its name, as in "test": those of "test at 0.7" belong to it.
    """
    splits = temperatures(records, split)
    heads = ["method" if other is None else f"method - {other}", "measure", *(f"at {value:g}" for value in splits)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method, runs in by_method(records):
        for name in SHOWN if method != other else ():
            cells = []
            for value, where in splits.items():
                number = measured(where, name)
                if value == 0 and MEASURES[name][1] > 1:
                    cells.append("")  # a greedy response is one response
                elif other is None:
                    cells.append(f"{mean(runs, number).mean:.3f}")
                else:
                    cells.append(difference_cell(records, number, method, other))
            lines.append(f"| {method if name == SHOWN[0] else ''} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def temperatures(records: Sequence[Record], split: str) -> dict[float, str]:
    """Return the split by the temperature of its samples, the lowest first; 0 is greedy."""
    names = {name for record in records for name in record["right"] if name.partition(" at ")[0] == split}
    return dict(sorted((float(name.partition(" at ")[2] or 1.0), name) for name in names))
