"""Where a step's wall time goes: parts that never overlap and add up to the whole."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PARTS = ("rollout", "rollout_wait", "verify_wait", "exchange", "old_logprobs", "train", "sync", "eval", "checkpoint", "record", "other")
"""rollout_wait: sampling for the next step that this one did not hide (rollout.ahead). verify_wait: verification that generation did not
hide. exchange: waiting for the samples of other ranks. old_logprobs: forward passes
before several updates. record: writing samples. other: all the rest, such as advantages and the row of metrics itself."""


class Clock:
    """A stopwatch with parts.

    with clock.part("train"):
        ...                                  # counted as train
        with clock.part("old_logprobs"):
            ...                              # counted as old_logprobs, not as train
    seconds = clock.lap()
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._open = ["other"]
        self._last = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`, one of PARTS, and not as the part around it."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def lap(self) -> dict[str, float]:
        """Return the seconds of every part since the last lap (or the beginning), and count anew."""
        self._charge()
        seconds, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return seconds

    def _charge(self) -> None:
        now = time.perf_counter()
        self._seconds[self._open[-1]] += now - self._last
        self._last = now
