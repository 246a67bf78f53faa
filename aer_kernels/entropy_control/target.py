"""Initial-anchored target: what entropy is held at, step by step."""

from __future__ import annotations

from typing import Any

from aer_kernels.entropy_control.aim import AimConfig
from aer_kernels.entropy_control.smoothing import smoothed

UNSOLVED_EMA = 0.9
"""Weight of the past in U of (C9): an update sees few prompts, so that their share is noisy."""

UNSOLVED_FIRST = 10
"""Updates after which U, until then the mean of all, is taken for U_0. Not more than 1 / (1 - UNSOLVED_EMA)."""


class Target:
    """H* in nats (C2), moved by (C8). All that it remembers is in `state`, plain numbers."""

    def __init__(self, config: AimConfig) -> None:
        self.state: dict[str, Any] = {"unsolved": 0.0, "unsolved_initial": None, "settles_from": None}
        self._config = config

    def see(self, unsolved: float, updates: int) -> None:
        """Take note of the share of an update's prompts that no sample solved (C9).

        Args:
            updates: so far, this one included.
        """
        state, part = self.state, self._config.settle_unsolved
        assert part is not None, "checked by the controller"
        state["unsolved"] = smoothed(state["unsolved"], unsolved, UNSOLVED_EMA, updates)
        if updates == UNSOLVED_FIRST:
            state["unsolved_initial"] = state["unsolved"]
        fell = updates >= UNSOLVED_FIRST and state["unsolved"] <= part * state["unsolved_initial"]
        if fell and state["settles_from"] is None:
            state["settles_from"] = updates

    def entropy(self, initial: float, updates: int) -> float:
        """Return H*.

        Args:
            initial: H_0, nats.
            updates: so far.
        """
        config = self._config
        start = config.tau * initial if config.target is None else config.target
        if config.tau_end is None:
            return start
        assert config.updates is not None, "checked by the controller"
        latest = config.hold * config.updates
        settles = latest if self.state["settles_from"] is None else min(latest, self.state["settles_from"])
        moved = min(1.0, max(0.0, (updates - settles) / (config.updates - settles)))
        return start * (1.0 + (config.tau_end / config.tau - 1.0) * moved)
