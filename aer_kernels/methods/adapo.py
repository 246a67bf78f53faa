"""ADAPO, our reading: the upper bound of the ratio is wide while entropy is below its target, and narrow while it is above.

    clip_high <- clip(clip_high + step sgn(target - H), least, most)                        once an update

All ratios of a batch's first update are 1: the method needs more than one update on each batch, and is refused otherwise.

Source: arXiv:2603.11682 (ICLR 2026), our reading: that the bound widens and narrows towards a target, the initial entropy, is certain. The
size of its steps is not known, so that `step` has no default; that they are added, and the bounds, are ours. There is no code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aer_kernels.entropy_control import Regulator
from aer_kernels.entropy_control.rules import Plain
from aer_kernels.methods.controlled import Controlled, ControlledConfig
from aer_kernels.methods.seam import TokenBatch, TokenTerms, check_option


@dataclass(frozen=True)
class AdapoConfig(ControlledConfig):
    """Options of ADAPO."""

    BOUND: ClassVar[str | None] = "most"

    kind: str = "adapo"
    step: float | None = None
    """What clip_high moves by at each update, >= 0. It must be given: the paper's value is not known."""
    start: float = 0.28
    """clip_high before the first update, in [least, most]."""
    least: float = 0.2
    """Smallest clip_high, >= 0."""
    most: float = 1.0
    """Largest clip_high, >= least."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("step", self.step, self.step is None or self.step >= 0, "be >= 0")
        check_option("least", self.least, self.least >= 0, "be >= 0")
        check_option("most", self.most, self.most >= self.least, f"be >= least ({self.least})")
        check_option("start", self.start, self.least <= self.start <= self.most, f"be in [least, most] = [{self.least}, {self.most}]")


class Adapo(Controlled):
    """ADAPO, our reading, as a method."""

    Config = AdapoConfig
    needs_logprobs = False
    MOVES = "clip_high"

    def __init__(self, config: AdapoConfig) -> None:
        if config.step is None:
            raise ValueError("step must be given for kind 'adapo', whose paper's value is not known, got None")
        step = config.step
        self.regulator = Regulator(config, Plain(lambda seen, now: now + step * seen.side), config.start, (config.least, config.most))

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        return TokenTerms(clip_high=self.regulator.value)
