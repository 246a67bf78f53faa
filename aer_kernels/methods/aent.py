"""AEnt: a bonus on the entropy of what is left of each distribution without its least likely tokens, held in a band.

    entropy_coef_t = coef,   H over the `1 - dropped` most likely share of the vocabulary
    coef <- clip(coef + step ([low - H]_+ - [H - high]_+), least, most),   low, high = target -+ width            once an update

H moves the coefficient as its mean over the tokens of an update.

Source: arXiv:2509.03493 (ICLR 2026), released form, with the constants of its recipe for AReaL, read in a copy: the authors' repository is
not obtainable. What differs: the set is found without sorting on the host, and H is the mean of the whole update. The set is chosen by
count: a fifth of 150,000 tokens dropped leaves 120,000, so H is close to that of the full distribution unless the policy is very flat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from aer_kernels.entropy_control import Regulator
from aer_kernels.entropy_control.rules import Plain, Seen
from aer_kernels.kept_set import KeptSet
from aer_kernels.methods.controlled import Controlled, ControlledConfig
from aer_kernels.methods.seam import TokenBatch, TokenTerms, check_option


@dataclass(frozen=True)
class AEntConfig(ControlledConfig):
    """Options of AEnt."""

    BOUND: ClassVar[str | None] = "most"

    kind: str = "aent"
    target: float | None = 0.3
    """Middle of the band, nats. None: tau times the initial entropy."""
    width: float = 0.2
    """Half the width of the band, nats, >= 0."""
    dropped: float = 0.2
    """Share of the vocabulary that entropy is not over, in [0, 1)."""
    start: float = 1e-3
    """The coefficient at first, in [least, most]."""
    step: float = 1e-3
    """How much the coefficient moves for each nat outside the band, >= 0."""
    least: float = 1e-5
    """Smallest coefficient, >= 0."""
    most: float = 1e-2
    """Largest coefficient, >= least."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("width", self.width, self.width >= 0, "be >= 0")
        check_option("dropped", self.dropped, 0 <= self.dropped < 1, "be in [0, 1)")
        check_option("step", self.step, self.step >= 0, "be >= 0")
        check_option("least", self.least, self.least >= 0, "be >= 0")
        check_option("most", self.most, self.most >= self.least, f"be >= least ({self.least})")
        inside = self.least <= self.start <= self.most
        check_option("start", self.start, inside, f"be in [least, most] = [{self.least}, {self.most}]")


class AEnt(Controlled):
    """AEnt as a method."""

    Config = AEntConfig
    needs_logprobs = False
    MOVES = "coef"
    also_needs = frozenset({"kept_entropy"})

    def __init__(self, config: AEntConfig) -> None:
        self.config, self.kept = config, KeptSet(top_share=1 - config.dropped)
        bounds = (config.least, config.most)
        self.regulator = Regulator(config, Plain(self._next), config.start, bounds, neutral=0.0, slack=config.width)

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        measured = tokens.need("kept_entropy")  # by a trainer that measures it, and so reports its mean to `update`
        return TokenTerms(entropy_coef=torch.ones_like(measured), entropy_scale=self.regulator.value)

    def _next(self, seen: Seen, coef: float) -> float:
        low, high = seen.target - self.config.width, seen.target + self.config.width
        return coef + self.config.step * (max(0.0, low - seen.smoothed) - max(0.0, seen.smoothed - high))
