"""A fine search for the fixed coefficient: what each candidate solves in each setting, and which one the search takes there."""

from __future__ import annotations

from collections.abc import Sequence

from study.failures import failures, found
from study.intervals import mean
from study.measures import measured, score
from study.names import ANNEALED, FIXED
from study.places import TUNED_FINELY, TUNINGS, tuned
from study.records import Record, by_place, pair_of
from study.tables import best_method

HEADS = {"grpo": "0", **{method: words.removeprefix("fixed ") for method, words in FIXED.items()}, **ANNEALED}
"""The candidates, by their coefficient."""


def grid_table(records: Sequence[Record]) -> str:
    """Hard and easy pass@1 on test prompts: a row a setting, a column a candidate, that of the search in bold; then the runs that found the
    strategy, and the settings where each failed.

    Args:
        records: the pairs that all candidates have, and others, which do not count.
    """
    runs = shared(records)
    lines = [f"| setting | {' | '.join(HEADS.values())} | {TUNED_FINELY} |", "|---" * (len(HEADS) + 2) + "|"]
    for place, members in by_place(runs).items():
        best = best_method(members, *TUNINGS[TUNED_FINELY])
        cells = [_solved(members, method, method == best) for method in HEADS]
        lines.append(f"| {place} | {' | '.join(cells)} | {HEADS[best]} |")
    everything, columns = [*runs, *tuned(runs, TUNED_FINELY)], [*HEADS, TUNED_FINELY]
    counted = [[r for r in everything if r["method"] == method] for method in columns]
    verdicts = [failures(everything, method).values() for method in columns]
    lines.append(f"| runs that found | {' | '.join(f'{sum(map(found, members))} of {len(members)}' for members in counted)} |")
    lines.append(f"| settings failed | {' | '.join(f'{sum(verdict)} of {len(verdict)}' for verdict in verdicts)} |")
    lines.append(f"| score on validation | {' | '.join(f'{mean(members, score).mean:.3f}' for members in counted)} |")
    return "\n".join(lines) + "\n"


def shared(records: Sequence[Record]) -> list[Record]:
    """Return the runs of the candidates at the places and seeds that all of them have."""
    candidates = [record for record in records if record["method"] in HEADS]
    pairs = set.intersection(*({pair_of(r) for r in candidates if r["method"] == method} for method in HEADS))
    return [record for record in candidates if pair_of(record) in pairs]


def _solved(members: Sequence[Record], method: str, chosen: bool) -> str:
    runs = [record for record in members if record["method"] == method]
    text = " / ".join(f"{mean(runs, measured('test', f'{tier} pass@1')).mean:.3f}".lstrip("0") for tier in ("hard", "easy"))
    return f"**{text}**" if chosen else text
