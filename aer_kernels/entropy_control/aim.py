"""What entropy is held at: the options that every method with a controller shares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AimConfig:
    """The target of the entropy, absolute or a share of the first entropy, at rest or moving, and how noisy measurements are smoothed."""

    kind: str = ""
    target: float | None = None
    """Absolute target in nats, >= 0. None means tau * H_0. With tau_end it moves to target * tau_end / tau."""
    tau: float = 1.0
    """Target as a share of the initial entropy H_0, > 0 (C2)."""
    tau_end: float | None = None
    """Target share at the last update, > 0 (C8). None holds tau to the end. It needs `updates`, which the trainer fills in."""
    hold: float = 0.5
    """Share of the updates, in [0, 1), after which the target begins to move to tau_end."""
    settle_unsolved: float | None = None
    """The target begins to move sooner than `hold` says, once the share of prompts that no sample solves has fallen to this part of its
    first value (C9), in (0, 1). None moves by the clock alone, which in docs/study.md is as good."""
    updates: int | None = None
    """Updates of the controller over the whole run, > 0. Only schedules need it. The trainer puts its own number of steps here."""
    ema: float = 0.0
    """Weight of the past in the smoothed entropy (C3), in [0, 1)."""

    def __post_init__(self) -> None:
        check_option("target", self.target, self.target is None or self.target >= 0, "be >= 0 or None")
        check_option("tau", self.tau, self.tau > 0, "be > 0")
        check_option("tau_end", self.tau_end, self.tau_end is None or self.tau_end > 0, "be > 0 or None")
        check_option("hold", self.hold, 0 <= self.hold < 1, "be in [0, 1)")
        known = self.settle_unsolved is None or 0 < self.settle_unsolved < 1
        check_option("settle_unsolved", self.settle_unsolved, known, "be in (0, 1) or None")
        check_option("updates", self.updates, self.updates is None or self.updates > 0, "be > 0 or None")
        check_option("ema", self.ema, 0 <= self.ema < 1, "be in [0, 1)")
        moves = self.settle_unsolved is None or self.tau_end is not None
        check_option("settle_unsolved", self.settle_unsolved, moves, "be None without tau_end")


def check_option(name: str, value: object, ok: bool, rule: str) -> None:
    """Raise ValueError, `<name> must <rule>, got <value>`, unless `ok`."""
    if not ok:
        raise ValueError(f"{name} must {rule}, got {value}")
