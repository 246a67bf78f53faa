"""One method against others, place by place: is a mean over all runs carried by a few places?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from study.intervals import FEW, Number, counts, difference_of_runs
from study.measures import SHOWN, measured, score
from study.names import ANNEALED, FIXED
from study.records import Record, by_place
from study.tables import FIRST_TRY, best_method, bold, difference_cell, shared

TUNED = "fixed, tuned to each setting"
TUNED_FINELY = "the best of nine at each setting"
TUNED_APART = "the best of nine, chosen by the other seeds"


@dataclass(frozen=True)
class Search:
    """How one of several methods is chosen in each setting."""

    candidates: str | tuple[str, ...]
    """How their names begin."""
    number: Number
    """By what, the largest mean over the runs that all of them have."""
    apart: bool = False
    """Each run by the runs of the other seeds alone. A run that finds the strategy by luck is otherwise chosen for its luck, which another
    run of the same method would not have."""

    def best(self, members: Sequence[Record], seed: int) -> str:
        """Return the method that it takes for a run.

        Args:
            members: all runs in the setting.
            seed: of the run.
        """
        asked = [record for record in members if not (self.apart and record["seed"] == seed)]
        return best_method(asked, self.candidates, self.number)


NINE = ("grpo", *FIXED, *ANNEALED)
TUNINGS = {TUNED: Search("fixed", FIRST_TRY), TUNED_FINELY: Search(NINE, score), TUNED_APART: Search(NINE, score, apart=True)}
"""Searches by their name, which is that of a method."""


def tuned(records: Sequence[Record], search: str = TUNED) -> list[Record]:
    """Return the runs that a search takes in each setting, as those of one method.

    Args:
        search: one of TUNINGS, which names the method.
    """
    found = []
    for members in by_place(records).values():
        candidates = shared(members, TUNINGS[search].candidates)
        best = {seed: TUNINGS[search].best(candidates, seed) for seed in {record["seed"] for record in candidates}}
        found += [record | {"method": search} for record in candidates if record["method"] == best[record["seed"]]]
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
