"""Where entropy sits while a strategy is being found: on easy or on hard prompts?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean

from aer_train.tasks.prompts import TIERS
from study.intervals import counts, mean
from study.records import Record, by_place
from study.tables import by_method, difference_cell, shown

SEARCH = slice(10, 60)
"""Steps, 0-based: before, the bonus has moved little; after, most runs have found the strategy."""


def tier_table(records: Sequence[Record], ours: str = "aer", theirs: str = "aer_uniform_weights") -> str:
    """Entropy of a response to easy and to hard prompts over the steps of SEARCH, as a share of H_0, by method and place, and what
    separates two methods."""
    lines = [f"| method, setting | runs | {' | '.join(f'{tier} prompts: H / H_0' for tier in TIERS)} |", "|---" * 4 + "|"]
    for method, members in by_method(records):
        places = by_place(members)
        for label, runs in [*places.items(), *([("all", members)] if len(places) > 1 else [])]:
            cells = [shown(mean(runs, partial(tier_entropy, tier=tier))) for tier in TIERS]
            lines.append(f"| {method}, {label} | {len(runs)} | {' | '.join(cells)} |")
    cells = [difference_cell(records, partial(tier_entropy, tier=tier), ours, theirs) for tier in TIERS]
    lines.append(f"| {ours} - {theirs} | {counts(records, ours, theirs)[0]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def tier_entropy(record: Record, tier: str) -> float:
    """Return the mean entropy of a response to the prompts of a tier over the steps of SEARCH, as a share of H_0."""
    curves = record["curves"]
    return fmean(value for value in curves[f"{tier}_entropy"][SEARCH] if value is not None) / curves["per_response"][0]
