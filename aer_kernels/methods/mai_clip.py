"""MAI's adaptive clip: the upper bound of the ratio rises while entropy is below its target, and falls while it is above.

    1 - eps <= r_t <= 1 / (1 - eps) + k,   and r_t <= cap for a negative advantage
    k <- clip(k + step sgn(target - H), 0, most)                                            once an update

At k = 0 the bounds are the same distance from 1 in the logarithm. All ratios of a batch's first update are 1: the method needs more than
one update on each batch, and is refused otherwise.

Source: the technical report on MAI-Thinking-1 (Microsoft AI, June 2026), paper form: the formula is certain, the constants are from notes
on it. There H is weighed by importance, as samples are stale; here it is the mean over the update's tokens. There is no code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aer_kernels.entropy_control import Regulator
from aer_kernels.entropy_control.rules import Plain
from aer_kernels.methods.controlled import Controlled, ControlledConfig
from aer_kernels.methods.seam import TokenBatch, TokenTerms, check_option


@dataclass(frozen=True)
class MAIClipConfig(ControlledConfig):
    """Options of the adaptive clip."""

    BOUND: ClassVar[str | None] = "most"

    kind: str = "mai_clip"
    target: float | None = 0.3
    """Mean entropy of a token, nats. None: tau times the initial entropy."""
    eps: float = 0.6
    """The lower bound is 1 - eps, in (0, 1)."""
    step: float = 0.25
    """What k moves by at each update, >= 0."""
    most: float = 2.5
    """Largest k, >= 0."""
    cap: float = 50.0
    """Largest ratio of a token with a negative advantage, > 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("eps", self.eps, 0 < self.eps < 1, "be in (0, 1)")
        check_option("step", self.step, self.step >= 0, "be >= 0")
        check_option("most", self.most, self.most >= 0, "be >= 0")
        check_option("cap", self.cap, self.cap > 1, "be > 1")


class MAIClip(Controlled):
    """The adaptive clip as a method."""

    Config = MAIClipConfig
    needs_logprobs = False
    MOVES = "clip_shift"

    def __init__(self, config: MAIClipConfig) -> None:
        self.config = config
        self.regulator = Regulator(config, Plain(lambda seen, k: k + config.step * seen.side), 0.0, (0.0, config.most), neutral=0.0)

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        eps = self.config.eps
        return TokenTerms(clip_low=eps, clip_high=1 / (1 - eps) + self.regulator.value - 1, dual_clip=self.config.cap)
