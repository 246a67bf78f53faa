"""One method against others, place by place: is a mean over all runs carried by a few places?"""

from __future__ import annotations

from collections.abc import Sequence

from study.records import Record, by_place
from study.statistics import Estimate, estimate
from study.tables import best_method, difference, shown_difference

SHOWN = ("hard pass@1", "hard pass@16", "easy pass@1")

TUNED = "fixed, tuned to each place"


def tuned(records: Sequence[Record]) -> list[Record]:
    """Return the runs of the fixed coefficient that is best on validation at its own place, as those of one method: what a search for the
    coefficient at every place would get."""
    found = []
    for members in by_place(records).values():
        best = best_method(members, "fixed")
        found += [record | {"method": TUNED} for record in members if record["method"] == best]
    return found


def across_places(records: Sequence[Record], split: str, name: str, ours: str, theirs: str) -> Estimate:
    """Return the estimate of a difference with places as units: of a place only the mean of its runs counts."""
    return estimate([difference(members, split, name, ours, theirs).mean for members in by_place(records).values()])


def places_table(records: Sequence[Record], split: str, ours: str, others: Sequence[str]) -> str:
    """Difference of `ours` to each of `others`: one row a place, then all runs, then the places as units."""
    columns = [f"{name} - {other}" for other in others for name in SHOWN]
    lines = [f"| {ours}, place | pairs | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for label, members in [*by_place(records).items(), ("all runs", records)]:
        found = [difference(members, split, name, ours, other) for other in others for name in SHOWN]
        lines.append(f"| {label} | {found[0].count} | {' | '.join(map(shown_difference, found))} |")
    units = [across_places(records, split, name, ours, other) for other in others for name in SHOWN]
    lines.append(f"| places as units | {units[0].count} | {' | '.join(map(shown_difference, units))} |")
    return "\n".join(lines) + "\n"
