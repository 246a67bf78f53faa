"""Means and differences with 95 % intervals whose units are places: a claim is about places like these, not about more runs at them.

From fewer than FEW places hardly anything follows for others: there the units are runs, and the interval is about these places alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from study.records import Place, Record, pair_of, place_of
from study.statistics import Estimate, estimate

FEW = 3
"""Places from which an interval says something about others."""

Number = Callable[[Record], float]
"""What is asked of a run."""


def mean(records: Sequence[Record], number: Number) -> Estimate:
    """Return the mean of a number with its interval over places, each of which is the mean of its runs."""
    values: dict[Place, list[float]] = {}
    for record in records:
        values.setdefault(place_of(record), []).append(number(record))
    return _over_places(values)


def difference(records: Sequence[Record], number: Number, ours: str, theirs: str) -> Estimate:
    """Return the mean of `ours` - `theirs` over the places at which both methods were run with the same seeds.

    Raises:
        ValueError - there is none.
    """
    return _over_places(differences(records, number, ours, theirs))


def difference_of_runs(records: Sequence[Record], number: Number, ours: str, theirs: str) -> Estimate:
    """Return the same with pairs of runs as units, whatever their places: about these places alone."""
    return estimate([value for values in differences(records, number, ours, theirs).values() for value in values])


def differences(records: Sequence[Record], number: Number, ours: str, theirs: str) -> dict[Place, list[float]]:
    """Return `ours` - `theirs` of every pair, by place.

    Raises:
        ValueError - there is none.
    """
    theirs_at = {pair_of(record): number(record) for record in records if record["method"] == theirs}
    found: dict[Place, list[float]] = {}
    for record in records:
        if record["method"] == ours and pair_of(record) in theirs_at:
            found.setdefault(place_of(record), []).append(number(record) - theirs_at[pair_of(record)])
    if not found:
        raise ValueError(f"{ours} and {theirs} must have runs at the same places with the same seeds to be compared, got none")
    return found


def counts(records: Sequence[Record], ours: str, theirs: str) -> tuple[int, int]:
    """Return how many pairs of runs two methods have, and at how many places.

    Raises:
        ValueError - there is none.
    """
    found = differences(records, lambda record: 0.0, ours, theirs).values()
    return sum(map(len, found)), len(found)


def _over_places(values: dict[Place, list[float]]) -> Estimate:
    if len(values) < FEW:
        return estimate([value for runs in values.values() for value in runs])
    return estimate([fmean(runs) for runs in values.values()])
