"""One method against others, place by place: is a mean over all runs carried by a few places?"""

from __future__ import annotations

from collections.abc import Sequence

from study.intervals import FEW, counts, difference_of_runs
from study.measures import SHOWN, measured
from study.records import Record, by_place
from study.tables import best_method, bold, difference_cell

TUNED = "fixed, tuned to each setting"


def tuned(records: Sequence[Record]) -> list[Record]:
    """Return the runs of the fixed coefficient that is best on validation at its own place, as those of one method: what a search for the
    coefficient at every place would get."""
    found = []
    for members in by_place(records).values():
        best = best_method(members, "fixed")
        found += [record | {"method": TUNED} for record in members if record["method"] == best]
    return found


def places_table(records: Sequence[Record], split: str, ours: str, others: Sequence[str]) -> str:
    """Difference of `ours` to each of `others`: one row a place, then all pairs of runs as units, then the places."""
    columns = [(other, name) for other in others for name in SHOWN]
    lines = [
        f"| {ours}, setting | pairs | {' | '.join(f'{name} - {other}' for other, name in columns)} |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for label, members in [*by_place(records).items(), ("runs as units", records)]:
        found = [difference_of_runs(members, measured(split, name), ours, other) for other, name in columns]
        lines.append(f"| {label} | {found[0].count} | {' | '.join(map(bold, found))} |")
    pairs, places = counts(records, ours, others[0])
    if places >= FEW:
        cells = [difference_cell(records, measured(split, name), ours, other) for other, name in columns]
        lines.append(f"| {places} settings as units | {pairs} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
