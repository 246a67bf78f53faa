"""The part of a method that holds entropy at a target by moving one number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from aer_kernels.entropy_control import AimConfig, Regulator
from aer_kernels.methods.seam import Measured, TokenBatch, check_option

EntropyOf = Literal["batch", "last"]
"""Whose entropy decides about an update: its own, or that of the update before."""


@dataclass(frozen=True)
class ControlledConfig(AimConfig):
    """Options of every method with a regulator."""

    BOUND: ClassVar[str | None] = None
    """The option that bounds what is moved. None: its bounds are fixed."""
    SPEED: ClassVar[str | None] = "step"
    """The option that says how fast it is moved. None: that is fixed."""
    UNIT: ClassVar[str] = "nats"
    """Of the entropy that is held."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("target", self.target, self.target is None or self.target > 0, "be > 0 or None")


class Controlled:
    """Base of the methods with a regulator: they need only `Config`, `MOVES`, `__init__`, which makes `regulator`, and `terms`."""

    MOVES: str
    """What the regulator moves, as it is logged."""
    needs_entropy = False
    also_needs: frozenset[str] = frozenset()
    regulator: Regulator

    def present(self, tokens: TokenBatch) -> Regulator:
        """Return the regulator that is to be used for an update: one that has seen this update's entropy already, where the method
        `needs_entropy` for that, else the one of the updates before."""
        if not self.needs_entropy or not len(tokens.need("entropy")):
            return self.regulator
        return self.regulator.after(float(tokens.need("entropy").double().mean()))

    def update(self, measured: Measured) -> None:
        self.regulator.update(measured.entropy, measured.tokens, measured.slopes, measured.unsolved)

    def status(self) -> dict[str, float | None]:
        return {self.MOVES: self.regulator.value, **self.regulator.status()}

    def state_dict(self) -> dict[str, Any]:
        return self.regulator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.regulator.load_state_dict(state)
