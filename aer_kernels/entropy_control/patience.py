"""Whether what is not solved stays so without a bonus (C14)."""

from __future__ import annotations

from statistics import fmean
from typing import Any

PART = 0.5
"""Part of its first value that the share of unsolved prompts must keep. In the study that was a third at most, or over three quarters."""


class Patience:
    """Looks for a number of updates at the share of unsolved prompts, and decides once. All that it remembers is in `state`, plain numbers.

    Args:
        updates: how many it looks at, >= 4. None lets act at once.
    """

    def __init__(self, updates: int | None) -> None:
        self._updates = updates
        self.state: dict[str, Any] = {"shares": [], "acts": True if updates is None else None}

    @property
    def acts(self) -> bool | None:
        """Whether there is to be a bonus; None until that is decided."""
        decided: bool | None = self.state["acts"]
        return True if self._updates is None else decided

    def see(self, unsolved: float) -> None:
        """Take note of the share of an update's prompts that no sample solved; asked only while it is undecided."""
        shares, number = [*self.state["shares"], unsolved], self._updates
        assert number is not None, "else it is decided"
        if len(shares) < number:
            self.state = {"shares": shares, "acts": None}
            return
        first, last = fmean(shares[: number // 4]), fmean(shares[-(number // 2) :])
        self.state = {"shares": [], "acts": 0 < last >= PART * first}
