"""Whether verification is broken: rewards of zero for responses that nobody judged teach a policy nonsense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from aer_train.types import Verdict

STEPS = 3
"""Steps in a row after which failures are no accident."""


class Failures:
    """Timeouts and crashes of any reward, step by step."""

    def __init__(self, most: float) -> None:
        """
        Args:
            most: share of a step's responses that may fail.
        """
        self.most = most
        self._steps = 0
        self._last = ""

    def step(self, verdicts: Sequence[Verdict]) -> None:
        """Take note of a step."""
        failed = [verdict for verdict in verdicts if not verdict.judged]
        if len(failed) <= self.most * len(verdicts):
            self._steps = 0
            return
        self._steps += 1
        reason, count = Counter(verdict.failure for verdict in failed).most_common(1)[0]
        self._last = f"{len(failed)} of {len(verdicts)} responses in the last one, {count} with {reason}"

    def persistent(self) -> str:
        """Return what is wrong when too many responses failed in STEPS steps in a row, else an empty text."""
        if self._steps < STEPS:
            return ""
        return (
            f"verification must fail for at most reward.max_failure_frac = {self.most:g}, got more in {STEPS} steps in a row ({self._last})"
        )
