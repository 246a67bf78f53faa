"""Whether what is not solved stays so without a bonus (C14)."""

from __future__ import annotations

from typing import Any

PART = 0.5
"""Part of its first value that the share of unsolved prompts must keep."""


class Patience:
    """Waits for a number of updates, and as long as unsolved prompts become solved. All that it remembers is in `state`, plain numbers.

    Args:
        updates: over which the share of unsolved prompts is averaged, > 0. None does not wait.
    """

    def __init__(self, updates: int | None) -> None:
        self._updates = updates
        self.state: dict[str, Any] = {"first": [], "last": [], "over": updates is None}

    @property
    def over(self) -> bool:
        """Whether waiting has ended; once it has, it stays so."""
        return bool(self.state["over"])

    def see(self, unsolved: float) -> None:
        """Take note of the share of an update's prompts that no sample solved."""
        state, number = self.state, self._updates
        assert number is not None, "asked only where it waits"
        if len(state["first"]) < number:
            state["first"].append(unsolved)
            return
        state["last"] = [*state["last"], unsolved][-number:]
        state["over"] = len(state["last"]) == number and 0 < sum(state["last"]) >= PART * sum(state["first"])
