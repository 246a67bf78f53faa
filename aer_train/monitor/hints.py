"""What the numbers of a run call for: one line a cause, naming the option to change and its value now.

A cause must be there in ENOUGH of the last WINDOW steps, so that one noisy step says nothing; an urgent one in URGENT_ENOUGH in a row.
It is told once, and again when it returns after WINDOW steps without it. The console tells hints while the run goes on; the report finds
the same ones in the records.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from aer_train.monitor.causes.entropy import collapse, explosion, out_of_reach, saturated, stands_by
from aer_train.monitor.causes.learning import FIRST, loss_is_zero, share_right, unlearned, zero_variance
from aer_train.monitor.causes.responses import no_answer, truncated, verifier
from aer_train.monitor.causes.rollouts import mismatch, sampling, waiting
from aer_train.monitor.options import Options
from aer_train.types import Row

WINDOW = 5
ENOUGH = 4

URGENT = ("out_of_reach",)
URGENT_ENOUGH = 2
"""Steps in a row after which an urgent cause is told: a policy that becomes noise is lost within a few."""

FIRST_STEPS = 3

CAUSES: dict[str, Callable[[Row, Options], str | None]] = {
    "collapse": collapse,
    "explosion": explosion,
    "out_of_reach": out_of_reach,
    "saturated": saturated,
    "stands_by": stands_by,
    "unlearned": unlearned,
    "zero_variance": zero_variance,
    "truncated": truncated,
    "loss_is_zero": loss_is_zero,
    "verifier": verifier,
    "no_answer": no_answer,
    "mismatch": mismatch,
    "waiting": waiting,
    "sampling": sampling,
}
"""Each returns its text when a row shows the cause."""


@dataclass(frozen=True)
class Hint:
    """One line for the user."""

    step: int
    """At which the cause had been there for long enough."""
    cause: str
    text: str


class Hints:
    """Reads the rows of a run in order, and says what they call for."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._options = Options(config)
        self._seen = {cause: deque[bool](maxlen=WINDOW) for cause in CAUSES}
        self._told: set[str] = set()
        self._first: list[float] = []

    def step(self, row: Row) -> list[Hint]:
        """Return what a finished step calls for that was not told before."""
        found, share = [], share_right(row)
        if share is not None and len(self._first) < FIRST_STEPS:
            self._first.append(share)
        if len(self._first) == FIRST_STEPS:
            row = {**row, FIRST: fmean(self._first)}
        for cause, find in CAUSES.items():
            text, seen = find(row, self._options), self._seen[cause]
            seen.append(text is not None)
            lasting = all([*seen][-URGENT_ENOUGH:]) and len(seen) >= URGENT_ENOUGH if cause in URGENT else sum(seen) >= ENOUGH
            if text is not None and lasting and cause not in self._told:
                self._told.add(cause)
                found.append(Hint(row["step"], cause, text))
            elif len(seen) == WINDOW and not any(seen):
                self._told.discard(cause)
        return found


def hints_of(rows: Iterable[Row], config: dict[str, Any]) -> list[Hint]:
    """Return every hint of a run."""
    hints = Hints(config)
    return [hint for row in rows for hint in hints.step(row)]
