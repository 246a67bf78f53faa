"""Where a method fails: the share of settings in which it does not do what it is for, or does harm."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from study.measures import measured
from study.records import Record, by_place

FOUND = 0.05
"""A run found the rare strategy if it solves more than this of the hard prompts at its end."""

LOSS = 0.05
"""A method does harm where it solves this much less of the easy prompts than plain GRPO."""

BROKEN = 0.5
"""A run broke if it solves less than this share of the easy prompts that plain GRPO solves in the mean."""

REFERENCE = "grpo"


def found(record: Record, split: str = "test") -> bool:
    """Return whether a run found the rare strategy."""
    return measured(split, "hard pass@1")(record) > FOUND


def broke(run: Record, reference: Sequence[Record], split: str = "test") -> bool:
    """Return whether a run lost most of what was solved at the start.

    Args:
        reference: of plain GRPO at the same place; at least one.
    """
    easy = measured(split, "easy pass@1")
    return easy(run) < BROKEN * fmean(map(easy, reference))


def fails(runs: Sequence[Record], reference: Sequence[Record], split: str = "test") -> bool:
    """Return whether a method fails at a place: fewer than half of its runs find the strategy, or easy prompts are lost.

    Args:
        runs: of the method, at one place; at least one.
        reference: of plain GRPO at the same place; at least one.
    """
    easy = measured(split, "easy pass@1")
    return 2 * sum(found(run, split) for run in runs) < len(runs) or fmean(map(easy, reference)) - fmean(map(easy, runs)) > LOSS


def failed(runs: Sequence[Record], records: Sequence[Record], split: str = "test") -> int:
    """Return in how many settings some runs of one method fail.

    Args:
        records: all runs of plain GRPO in these settings are the reference, also those without a partner; others do not count.
    """
    return sum(
        fails(members, [record for record in by_place(records)[place] if record["method"] == REFERENCE], split)
        for place, members in by_place(runs).items()
    )


def failures(records: Sequence[Record], method: str, split: str = "test") -> dict[str, bool]:
    """Return by the name of each place at which a method was run whether it fails there.

    Raises:
        ValueError - plain GRPO was not run at one of them.
    """
    verdicts = {}
    for place, members in by_place(records).items():
        runs = [record for record in members if record["method"] == method]
        reference = [record for record in members if record["method"] == REFERENCE]
        if runs and not reference:
            raise ValueError(f"records must have runs of {REFERENCE} at {place}, got none")
        if runs:
            verdicts[place] = fails(runs, reference, split)
    return verdicts
