"""Entropy methods beside each other: one row a method at its defaults, one at its tuned value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

from study.failures import failures, found
from study.intervals import difference_of_runs, mean
from study.measures import SHOWN, kept, measured, score
from study.names import AER
from study.records import Record
from study.tables import by_method, difference_cell, shown

NAMES = {"aer_uniform_clock": "AER", "grpo": "GRPO", "fixed01": "fixed .01", "fixed03": "fixed .03", "fixed10": "fixed .1"}
"""What readers call them."""


def family(method: str) -> str:
    """Return the method of which this is a candidate for the tuned value: stare of stare_1."""
    return re.sub(r"_\d$", "", method)


def label(method: str) -> str:
    """Return the name of a row."""
    return NAMES.get(method, method if family(method) == method else f"{family(method)}, tuned ({method})")


def chosen(tuning: Sequence[Record]) -> dict[str, str]:
    """Return the candidate of each method with the best mean score; the first of equals."""
    scores = {method: fmean(map(score, runs)) for method, runs in by_method(tuning)}
    best: dict[str, str] = {}
    for method in scores:
        name = family(method)
        if name not in best or scores[method] > scores[best[name]]:
            best[name] = method
    return best


def tuning_table(tuning: Sequence[Record]) -> str:
    """Every candidate on validation prompts: its score, and both of its parts."""
    best = chosen(tuning).values()
    lines = ["| candidate | runs | score | hard pass@1 | easy pass@1 | chosen |", "|---|---|---|---|---|---|"]
    for method, runs in by_method(tuning):
        parts = [fmean(map(measured("validation", f"{tier} pass@1"), runs)) for tier in ("hard", "easy")]
        cells = [f"{fmean(map(score, runs)):.3f}", *(f"{part:.3f}" for part in parts)]
        lines.append(f"| {method} | {len(runs)} | {' | '.join(cells)} | {'yes' if method in best else ''} |")
    return "\n".join(lines) + "\n"


def rivals_table(records: Sequence[Record]) -> str:
    """One row a method, those that fail least first; among them those that solve most of the hard prompts."""
    heads = ["method", "settings failed", "runs that found", *SHOWN, "entropy kept", "hard pass@1 - AER's, over settings", "over pairs"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return (
        "\n".join(lines + [row for _, row in sorted((_rank(records, method), _row(records, method)) for method in _methods(records))])
        + "\n"
    )


def order(records: Sequence[Record]) -> list[str]:
    """Return the methods in the order of the table's rows."""
    return sorted(_methods(records), key=lambda method: _rank(records, method))


def _methods(records: Sequence[Record]) -> list[str]:
    return [method for method, _ in by_method(records)]


def _rank(records: Sequence[Record], method: str) -> tuple[int, float]:
    runs = [record for record in records if record["method"] == method]
    return sum(failures(records, method).values()), -mean(runs, measured("test", "hard pass@1")).mean


def _row(records: Sequence[Record], method: str) -> str:
    runs, verdicts = [record for record in records if record["method"] == method], failures(records, method)
    cells = [label(method), f"{sum(verdicts.values())} of {len(verdicts)}", f"{sum(map(found, runs))} of {len(runs)}"]
    cells += [f"{mean(runs, measured('test', name)).mean:.3f}" for name in SHOWN]
    cells.append(f"{fmean(map(kept, runs)):.2f}")
    number = measured("test", "hard pass@1")
    if method == AER:
        cells += ["", ""]
    else:
        cells += [difference_cell(records, number, method, AER), shown(difference_of_runs(records, number, method, AER), "+")]
    return f"| {' | '.join(cells)} |"
