"""Entrocraft: below a band of entropies only the responses with a negative advantage are trained, above it only those with a positive one.

    H < target - width: A < 0 alone        H > target + width: A > 0 alone        between: all, as in GRPO

The middle of the band moves in a straight line over the run, from `target` to tau_end times it.

Source: arXiv:2604.26326, released form (lblaoke/entrocraft 26165bd): a band from 0.6 .. 0.7 to 0.1 .. 0.2 nats, the linear schedule, which
was best there. What differs: advantages keep their size outside the band. The release takes the rewards, +1 and -1, in their place, so that
the scale of the gradient jumps where the band is left (1 for .707), and groups that are all right or all wrong are trained too; raw does
that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import torch

from aer_kernels.entropy_control import Regulator
from aer_kernels.entropy_control.rules import Plain, Seen
from aer_kernels.methods.controlled import Controlled, ControlledConfig, EntropyOf
from aer_kernels.methods.seam import TokenBatch, TokenTerms, check_option
from aer_kernels.validate import check_choice


@dataclass(frozen=True)
class EntrocraftConfig(ControlledConfig):
    """Options of Entrocraft."""

    SPEED: ClassVar[str | None] = None

    kind: str = "entrocraft"
    target: float | None = 0.65
    """Middle of the band at first: mean entropy of a token, nats. None: tau times the initial entropy."""
    tau_end: float | None = 0.15 / 0.65
    """Middle of the band at the last update, as a multiple of the first (divided by tau). None: it does not move."""
    hold: float = 0.0
    """Share of the updates, in [0, 1), after which the band begins to move."""
    width: float = 0.05
    """Half the width of the band, nats, >= 0."""
    raw: bool = False
    """Outside the band: rewards of +1 and -1 in place of the advantages, as in the release. Needs the rewards of the responses."""
    entropy_of: EntropyOf = "batch"
    """Whose entropy decides. batch: this update's, which costs a forward pass. last: that of the update before, which is free."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("width", self.width, self.width >= 0, "be >= 0")
        check_choice("entropy_of", self.entropy_of, get_args(EntropyOf))


class Entrocraft(Controlled):
    """Entrocraft as a method. The number that is moved is the sign of the advantages that are trained alone; 0 trains all."""

    Config = EntrocraftConfig
    needs_logprobs = False
    MOVES = "trained_sign"

    def __init__(self, config: EntrocraftConfig) -> None:
        self.config, self.needs_entropy = config, config.entropy_of == "batch"
        rule = Plain(lambda seen, _: outside(seen, config.width))
        self.regulator = Regulator(config, rule, 0.0, (-1.0, 1.0), raises=-1, slack=config.width)

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        sign = self.present(tokens).value
        if not self.config.raw:
            return TokenTerms(weight=((tokens.advantages * sign > 0) | (sign == 0)).float())
        scores = (2 * tokens.need("rewards") - 1)[tokens.response]
        kept = scores if sign == 0 else torch.where(scores * sign > 0, scores, 0.0)
        return TokenTerms(shift=torch.zeros_like(tokens.advantages) if sign == 0 else kept - tokens.advantages)


def outside(seen: Seen, width: float) -> float:
    """1 above the band, -1 below it, 0 inside."""
    return float((seen.smoothed > seen.target + width) - (seen.smoothed < seen.target - width))
