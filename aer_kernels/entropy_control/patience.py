"""Whether what is not solved stays so without a bonus (C14)."""

from __future__ import annotations

from statistics import fmean

PART = 0.5
"""Part of its first value that the share of unsolved prompts must keep. In the study that was a third at most, or over three quarters."""


class Patience:
    """Looks for a number of updates at the share of unsolved prompts, and decides once. All that it remembers is in `shares`.

    Args:
        updates: how many it looks at, >= 4. None lets act at once.
    """

    def __init__(self, updates: int | None) -> None:
        self._updates = updates
        self.shares: list[float] = []
        """Of prompts that no sample solved, an update each, up to the one that decides."""

    @property
    def acts(self) -> bool | None:
        """Whether there is to be a bonus; None until that is decided."""
        number = self._updates
        if number is None:
            return True
        if len(self.shares) < number:
            return None
        seen = self.shares[:number]
        return 0 < fmean(seen[-(number // 2) :]) >= PART * fmean(seen[: number // 4])

    def see(self, unsolved: float) -> None:
        """Take note of an update's share; asked only while it is undecided."""
        self.shares.append(unsolved)
