"""Markdown tables, from records alone. Intervals are over places where there are enough of them (`study.intervals`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from study.control import has_target, holds, phases, response_of
from study.intervals import FEW, Number, counts, difference, difference_of_runs, mean
from study.measures import average, bonus_share, end, kept, measured, told_by
from study.records import Record, by_place, pair_of
from study.statistics import Estimate

FIRST_TRY = measured("validation", "hard pass@1")
"""By which the best of several methods is chosen, unless something else is said."""


def control_table(records: Sequence[Record], places: bool = True) -> str:
    """How each method with a target held it: one row over all places and, with `places`, one for each; phases of a moving target apart."""
    records = [record for record in records if has_target(record)]
    lines = [
        "| controller | setting | runs held | in band: mean, least | largest / H* | smallest / H* | steps to the band | last coefficient |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, ours in by_method(records):
        for phase in phases(ours[0]):
            name = f"{method}, {phase}" if phase else method
            rows = [("all", ours), *(by_place(ours).items() if places else ())]
            lines += [_control_row(name, label, members, phase) for label, members in rows]
    return "\n".join(lines) + "\n"


def _control_row(name: str, label: str, members: Sequence[Record], phase: str) -> str:
    found = [response_of(record, phases(record)[phase]) for record in members if phase in phases(record)]
    reached = sorted(r.reached for r in found if r.reached is not None)
    shares = [r.in_band for r in found]
    coefs = [coef for coef in (end(record, "coef") for record in members) if not math.isnan(coef)]  # what moves something else has none
    coef = f"{average(coefs):.3g}" if coefs else "-"
    return (
        f"| {name} | {label} | {sum(map(holds, found))} of {len(found)} | {average(shares):.2f}, {min(shares):.2f} "
        f"| {max(r.largest for r in found):.2f} | {min(r.smallest for r in found):.2f} "
        f"| {reached[len(reached) // 2] if reached else '-'} | {coef} |"
    )


def outcome_table(records: Sequence[Record], split: str) -> str:
    """Accuracy of the last policies by method."""
    names = told_by(records)
    heads = ["method", "runs", "settings", *names, "entropy kept", "bonus in the gradient"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method, ours in by_method(records):
        cells = [shown(mean(ours, measured(split, name))) for name in names]
        share = average([bonus_share(record) for record in ours])
        lines.append(
            f"| {method} | {len(ours)} | {units(len(by_place(ours)))} | {' | '.join(cells)} | {shown(mean(ours, kept))} | {share:.0%} |"
        )
    return "\n".join(lines) + "\n"


def generalization_table(records: Sequence[Record], split: str) -> str:
    """Where easy accuracy is lost: on training prompts at the end of training, and on prompts of the split."""
    heads = ["method", "runs", "settings", *(f"{tier}, {where} prompts" for tier in ("easy", "hard") for where in ("training", "held-out"))]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method, ours in by_method(records):
        cells = []
        for tier in ("easy", "hard"):
            cells.append(shown(mean(ours, partial(end, curve=tier))))
            cells.append(shown(mean(ours, measured(split, f"{tier} pass@1"))))
        lines.append(f"| {method} | {len(ours)} | {units(len(by_place(ours)))} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def paired_table(records: Sequence[Record], split: str, other: str) -> str:
    """Difference of every method to `other` over the pairs of runs at the same place with the same seed."""
    names = told_by(records)
    lines = [f"| method - {other} | pairs | settings | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for method, _ in by_method(records):
        if method != other:
            lines.append(f"| {method} {difference_cells(records, split, names, method, other)}")
    return "\n".join(lines) + "\n"


def difference_cells(records: Sequence[Record], split: str, names: Iterable[str], ours: str, theirs: str) -> str:
    """Return the cells of a difference: pairs, places, and each measure."""
    pairs, places = counts(records, ours, theirs)
    cells = [difference_cell(records, measured(split, name), ours, theirs) for name in names]
    return f"| {pairs} | {units(places)} | {' | '.join(cells)} |"


def difference_cell(records: Sequence[Record], number: Number, ours: str, theirs: str) -> str:
    """Return a difference with its interval, bold where it excludes zero and so does that over runs: few places may agree by chance."""
    over_runs = difference_of_runs(records, number, ours, theirs)
    found = difference(records, number, ours, theirs)
    return bold(found) if over_runs.excludes_zero else shown(found, "+")


def units(places: int) -> str:
    """Return the number of places, and that the units of an interval are runs where they are few."""
    return f"{places}" if places >= FEW else f"{places}, runs as units"


def best_method(records: Sequence[Record], prefix: str | tuple[str, ...], number: Number = FIRST_TRY) -> str:
    """Return the method whose name starts with `prefix`, or one of several, that is best over the pairs (place and seed) that all of them
    have; the first of equals.

    Args:
        number: by which one is best.
    Raises:
        ValueError - there is no such method, or no such place and seed.
    """
    return max(by_method(shared(records, prefix)), key=lambda found: average([number(record) for record in found[1]]))[0]


def shared(records: Sequence[Record], prefix: str | tuple[str, ...]) -> list[Record]:
    """Return the runs of the methods whose names start with `prefix`, or one of several, at the pairs (place, seed) that all of them have.

    Raises:
        ValueError - there is no such method, or no such place and seed.
    """
    found = [record for record in records if record["method"].startswith(prefix)]
    methods = [method for method, _ in by_method(found)]
    pairs = [{pair_of(record) for record in ours} for _, ours in by_method(found)]
    common = set.intersection(*pairs) if pairs else set()
    if not common:
        raise ValueError(f"records must have runs of methods {prefix!r}... at the same places, got {', '.join(methods) or 'none'}")
    return [record for record in found if pair_of(record) in common]


def shown(value: Estimate, sign: str = "") -> str:
    """Return `mean ± half-width` in three decimals; with sign "+" every mean has one."""
    text = f"{value.mean:{sign}.3f}"
    return text if math.isnan(value.half_width) else f"{text} ± {value.half_width:.3f}"


def bold(value: Estimate) -> str:
    """Return a difference with its sign, bold where its interval excludes zero."""
    return f"**{shown(value, '+')}**" if value.excludes_zero else shown(value, "+")


def by_method(records: Sequence[Record]) -> Iterator[tuple[str, list[Record]]]:
    """Yield each method with its runs, in the order in which methods first appear."""
    for method in dict.fromkeys(record["method"] for record in records):
        yield method, [record for record in records if record["method"] == method]
