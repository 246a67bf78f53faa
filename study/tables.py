"""Markdown tables, from records alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from study.control import has_target, holds, phases, response_of
from study.held_out import pass_at
from study.records import Record, by_place
from study.statistics import Estimate, estimate, paired

MEASURES = {
    "hard pass@1": ("hard", 1),
    "hard pass@16": ("hard", 16),
    "hard pass@64": ("hard", 64),
    "easy pass@1": ("easy", 1),
    "easy pass@16": ("easy", 16),
}
"""Column: (tier, k). A k above the number of samples is that number."""

LAST = 20
"""Steps at the end of a run over which entropy and coefficient are averaged."""


def control_table(records: Sequence[Record], by_setting: bool = True) -> str:
    """How each method with a target held it: one row over all settings and, `by_setting`, one for each; phases of a moving target apart."""
    records = [record for record in records if has_target(record)]
    lines = [
        "| controller | setting | runs held | in band: mean, least | largest / H* | smallest / H* | steps to the band | last coefficient |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in _unique(records, "method"):
        ours = [record for record in records if record["method"] == method]
        for phase in phases(ours[0]):
            name = f"{method}, {phase}" if phase else method
            rows = [("all", ours), *(by_place(ours).items() if by_setting else ())]
            lines += [_control_row(name, label, members, phase) for label, members in rows]
    return "\n".join(lines) + "\n"


def _control_row(name: str, label: str, members: Sequence[Record], phase: str) -> str:
    found = [response_of(record, phases(record)[phase]) for record in members if phase in phases(record)]
    reached = sorted(r.reached for r in found if r.reached is not None)
    shares = [r.in_band for r in found]
    return (
        f"| {name} | {label} | {sum(map(holds, found))} of {len(found)} | {_mean(shares):.2f}, {min(shares):.2f} "
        f"| {max(r.largest for r in found):.2f} | {min(r.smallest for r in found):.2f} "
        f"| {reached[len(reached) // 2] if reached else '-'} | {_mean([end(record, 'coef') for record in members]):.3g} |"
    )


def outcome_table(records: Sequence[Record], split: str) -> str:
    """Accuracy of the last policies by method, mean and 95 % interval over all runs."""
    lines = [f"| method | runs | {' | '.join(MEASURES)} | entropy kept | bonus in the gradient |", "|---" * (len(MEASURES) + 4) + "|"]
    for method in _unique(records, "method"):
        ours = [record for record in records if record["method"] == method]
        cells = [shown(estimate([measure(record, split, name) for record in ours])) for name in MEASURES]
        kept = shown(estimate([end(record, "entropy") / record["curves"]["entropy"][0] for record in ours]))
        share = _mean([_mean([value or 0.0 for value in record["curves"]["bonus_share"]]) for record in ours])
        lines.append(f"| {method} | {len(ours)} | {' | '.join(cells)} | {kept} | {share:.0%} |")
    return "\n".join(lines) + "\n"


def generalization_table(records: Sequence[Record], split: str) -> str:
    """Where easy accuracy is lost: on training prompts at the end of training, and on prompts of the split."""
    lines = [
        "| method | runs | easy, training prompts | easy, held-out prompts | hard, training prompts | hard, held-out prompts |",
        "|---" * 6 + "|",
    ]
    for method in _unique(records, "method"):
        ours = [record for record in records if record["method"] == method]
        cells = []
        for tier in ("easy", "hard"):
            cells.append(shown(estimate([end(record, tier) for record in ours])))
            cells.append(shown(estimate([measure(record, split, f"{tier} pass@1") for record in ours])))
        lines.append(f"| {method} | {len(ours)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def paired_table(records: Sequence[Record], split: str, other: str) -> str:
    """Difference of every method to `other` over the runs at the same place: setting, hard share, learning rate and seed."""
    lines = [f"| method - {other} | pairs | {' | '.join(MEASURES)} |", "|---" * (len(MEASURES) + 2) + "|"]
    for method in _unique(records, "method"):
        if method == other:
            continue
        found = [difference(records, split, name, method, other) for name in MEASURES]
        lines.append(f"| {method} | {found[0].count} | {' | '.join(map(shown_difference, found))} |")
    return "\n".join(lines) + "\n"


def difference(records: Sequence[Record], split: str, name: str, ours: str, theirs: str) -> Estimate:
    """Return the paired estimate of a measure between two methods."""
    return compared(records, lambda record: measure(record, split, name), ours, theirs)


def compared(records: Sequence[Record], number: Callable[[Record], float], ours: str, theirs: str) -> Estimate:
    """Return the paired estimate of any number of a run between two methods."""

    def at(method: str) -> dict[object, float]:
        return {place(record): number(record) for record in records if record["method"] == method}

    return paired(at(ours), at(theirs))


def best_method(records: Sequence[Record], prefix: str, name: str = "hard pass@1") -> str:
    """Return the method whose name starts with `prefix` that is best on validation, over the places at which all of them were run.

    Raises:
        ValueError - there is no such method, or no such place.
    """
    ours = [record for record in records if record["method"].startswith(prefix)]
    found = {method: {place(r): r for r in ours if r["method"] == method} for method in _unique(ours, "method")}
    common = set.intersection(*map(set, found.values())) if found else set()
    if not common:
        raise ValueError(f"records must have runs of methods {prefix!r}... at the same places, got {', '.join(found) or 'none'}")
    mean = {method: _mean([measure(runs[at], "validation", name) for at in common]) for method, runs in found.items()}
    return max(found, key=lambda method: mean[method])


def measure(record: Record, split: str, name: str) -> float:
    """Return a number of the last policy; a run that diverged solves nothing."""
    tier, k = MEASURES[name]
    if record["diverged"] is not None:
        return 0.0
    return pass_at(record["right"][split][tier], record["samples"], min(k, record["samples"]))


def end(record: Record, curve: str) -> float:
    """Return the mean of a curve over its last steps."""
    return _mean([value for value in record["curves"][curve][-LAST:] if value is not None])


def place(record: Record) -> tuple[Any, ...]:
    """Return what two runs must share to be compared."""
    return record["setting"], record["hard_share"], record["lr_scale"], record["seed"]


def shown(value: Estimate, sign: str = "") -> str:
    """Return `mean ± half-width` in three decimals; with sign "+" every mean has one."""
    mean = f"{value.mean:{sign}.3f}"
    return mean if math.isnan(value.half_width) else f"{mean} ± {value.half_width:.3f}"


def shown_difference(value: Estimate) -> str:
    """Return a difference with its sign, bold where its interval excludes zero."""
    return f"**{shown(value, '+')}**" if value.excludes_zero else shown(value, "+")


def _unique(records: Sequence[Record], key: str) -> list[str]:
    return list(dict.fromkeys(record[key] for record in records))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
