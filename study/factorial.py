"""AER's parts in every combination that differs: a row a combination, then what each part does in the mean over the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from statistics import fmean

from study.failures import failures, found
from study.intervals import differences, mean
from study.measures import SHOWN, measured
from study.names import AER
from study.records import Place, Record
from study.statistics import Estimate, estimate
from study.tables import bold, difference_cell

PARTS = {"adapts": "_fixed", "settles": "_constant", "anchored": "_absolute", "limited": "_unlimited"}
"""A part of AER, and what the name of a method has where it is taken out."""

ALONE = "fixed10"
"""What is left without a rule and a limit, whatever the target."""

Parts = frozenset[str]


def method_with(parts: Parts) -> str:
    """Return the method that has these of PARTS."""
    if not parts & {"adapts", "limited"}:
        return ALONE
    return AER + "".join(mark for part, mark in PARTS.items() if part not in parts)


def combinations() -> list[Parts]:
    """Return every set of parts, the largest first."""
    sets = [
        frozenset(part for part, there in zip(PARTS, chosen, strict=True) if there) for chosen in product((True, False), repeat=len(PARTS))
    ]
    return sorted(sets, key=lambda parts: -len(parts))


def contrasts(part: str) -> Iterator[tuple[str, str]]:
    """Yield the methods with a part and without it, all else equal, where the two differ."""
    for parts in combinations():
        ours, theirs = method_with(parts), method_with(parts - {part})
        if part in parts and ours != theirs:
            yield ours, theirs


def factorial_table(records: Sequence[Record]) -> str:
    """A row a combination of parts, beside AER; then a row a part: with it minus without, over the combinations that differ in it alone."""
    heads = ["AER's parts", *SHOWN, "hard pass@1 - AER's", "easy pass@1 - AER's", "runs that found", "settings failed"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    labels = {method_with(parts): ", ".join(part for part in PARTS if part in parts) for parts in combinations()}
    del labels[ALONE]
    labels |= {ALONE: "none: a fixed .1", "grpo": "plain GRPO"}
    lines += [_row(records, method, label) for method, label in labels.items()]
    for part in PARTS:
        pairs = list(contrasts(part))
        cells = [bold(effect(records, pairs, name)) for name in SHOWN]
        lines.append(f"| *{part}: with - without, {len(pairs)} pairs of rows* | {' | '.join(cells)} |  |  |  |  |")
    return "\n".join(lines) + "\n"


def effect(records: Sequence[Record], pairs: Sequence[tuple[str, str]], name: str) -> Estimate:
    """Return the mean difference of a measure over pairs of methods, with its interval over settings."""
    values: dict[Place, list[float]] = {}
    for ours, theirs in pairs:
        for place, members in differences(records, measured("test", name), ours, theirs).items():
            values.setdefault(place, []).extend(members)
    return estimate([fmean(members) for members in values.values()])


def _row(records: Sequence[Record], method: str, label: str) -> str:
    runs, verdicts = [record for record in records if record["method"] == method], failures(records, method)
    cells = [f"{mean(runs, measured('test', name)).mean:.3f}" for name in SHOWN]
    for tier in ("hard", "easy"):
        cells.append("" if method == AER else difference_cell(records, measured("test", f"{tier} pass@1"), method, AER))
    cells += [f"{sum(map(found, runs))} of {len(runs)}", f"{sum(verdicts.values())} of {len(verdicts)}"]
    return f"| {label} | {' | '.join(cells)} |"
