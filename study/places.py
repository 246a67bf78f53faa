"""One method against others, place by place: is a mean over all runs carried by a few places?"""

from __future__ import annotations

from collections.abc import Sequence

from study.intervals import FEW, Number, counts, difference_of_runs
from study.measures import SHOWN, measured, score
from study.names import ANNEALED, FIXED
from study.records import Record, by_place
from study.tables import FIRST_TRY, best_method, bold, difference_cell

TUNED = "fixed, tuned to each setting"
TUNED_FINELY = "the best of nine at each setting"

TUNINGS: dict[str, tuple[str | tuple[str, ...], Number]] = {
    TUNED: ("fixed", FIRST_TRY),
    TUNED_FINELY: (("grpo", *FIXED, *ANNEALED), score),
}
"""How the names of the candidates of a search begin, and by what one of them is chosen."""


def tuned(records: Sequence[Record], search: str = TUNED) -> list[Record]:
    """Return the runs of the candidate that is best on validation at its own place, as those of one method: what a search at every place
    would get.

    Args:
        search: one of TUNINGS, which names the method.
    """
    found = []
    for members in by_place(records).values():
        best = best_method(members, *TUNINGS[search])
        found += [record | {"method": search} for record in members if record["method"] == best]
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
