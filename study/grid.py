"""A fine search for the fixed coefficient: what each candidate solves in each setting, and which one the search takes there."""

from __future__ import annotations

from collections.abc import Sequence

from study.failures import failed, found
from study.intervals import mean
from study.measures import measured, score
from study.names import ANNEALED, FIXED
from study.places import NINE, TUNED_APART, TUNED_FINELY, TUNINGS, tuned
from study.records import Record, by_place
from study.tables import shared

HEADS = {"grpo": "0", **{method: words.removeprefix("fixed ") for method, words in FIXED.items()}, **ANNEALED}
"""The candidates, by their coefficient."""


def grid_table(records: Sequence[Record]) -> str:
    """Hard and easy pass@1 on test prompts: a row a setting, a column a candidate, the one that the search takes in bold, and a column a
    search; then the runs that found the strategy, and the settings where each failed.

    Args:
        records: the pairs that all candidates have, and others, which do not count.
    """
    runs = shared(records, NINE)
    searches = {search: tuned(runs, search) for search in (TUNED_FINELY, TUNED_APART)}
    lines = [f"| setting | {' | '.join([*HEADS.values(), *searches])} |", "|---" * (len(HEADS) + len(searches) + 1) + "|"]
    for place, members in by_place(runs).items():
        found_by = [by_place(taken)[place] for taken in searches.values()]
        best = TUNINGS[TUNED_FINELY].best(members, members[0]["seed"])  # the same for every seed
        cells = [_solved(members, method, method == best) for method in HEADS]
        cells += [_solved(taken, search) for search, taken in zip(searches, found_by, strict=True)]
        lines.append(f"| {place} | {' | '.join(cells)} |")
    everything, columns = [*runs, *(record for taken in searches.values() for record in taken)], [*HEADS, *searches]
    counted = [[r for r in everything if r["method"] == method] for method in columns]
    lines.append(f"| runs that found | {' | '.join(f'{sum(map(found, members))} of {len(members)}' for members in counted)} |")
    lines.append(f"| settings failed | {' | '.join(f'{failed(members, records)} of {len(by_place(members))}' for members in counted)} |")
    lines.append(f"| score on validation | {' | '.join(f'{mean(members, score).mean:.3f}' for members in counted)} |")
    return "\n".join(lines) + "\n"


def _solved(members: Sequence[Record], method: str, chosen: bool = False) -> str:
    runs = [record for record in members if record["method"] == method]
    text = " / ".join(f"{mean(runs, measured('test', f'{tier} pass@1')).mean:.3f}".lstrip("0") for tier in ("hard", "easy"))
    return f"**{text}**" if chosen else text
