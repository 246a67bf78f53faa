"""EntroPIC: the tokens that the policy is nearly certain of are pulled up while entropy is above its target, and down while it is below.

    A_t <- A_t + alpha |A_t| N / n   where p_t > confident                   N loss tokens, n of them confident
    alpha = clip(kp e + ki I, -1, 1),   then I <- I + e,   e = H - target                   once an update

Strictly on-policy, with token_mean, that is the gradient of the paper's extra term, alpha times the mean of -r |A| over the confident
tokens.

Source: arXiv:2511.15248, released form (yk7333/EntroPIC 2470730) with its constants. What differs: e is that of the update, where the
release takes the entropy of each micro-batch on each rank, so that ranks differ in alpha within a step; I stands still while alpha is at a
bound and e would take it further; the state is saved; p is that of the policy that sampled. On later updates of a batch the clip of the
ratio acts on the sum of both terms, where the release never clips the second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch

from aer_kernels.entropy_control import Regulator
from aer_kernels.entropy_control.rules import Seen, State
from aer_kernels.methods.controlled import Controlled, ControlledConfig, EntropyOf
from aer_kernels.methods.seam import TokenBatch, TokenTerms, check_option
from aer_kernels.validate import check_choice


@dataclass(frozen=True)
class EntroPICConfig(ControlledConfig):
    """Options of EntroPIC."""

    SPEED: ClassVar[str | None] = "kp"

    kind: str = "entropic"
    target: float | None = 0.1
    """Mean entropy of a token, nats. None: tau times the initial entropy."""
    kp: float = 1.0
    """Proportional gain, 1/nats, >= 0."""
    ki: float = 0.01
    """Integral gain of an update, 1/nats, >= 0."""
    confident: float = 0.95
    """Probability above which a token is pulled, in (0, 1)."""
    entropy_of: EntropyOf = "batch"
    """Whose entropy is compared. batch: this update's, which costs a forward pass. last: that of the update before, which is free."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("kp", self.kp, self.kp >= 0, "be >= 0")
        check_option("ki", self.ki, self.ki >= 0, "be >= 0")
        check_option("confident", self.confident, 0 < self.confident < 1, "be in (0, 1)")
        check_choice("entropy_of", self.entropy_of, get_args(EntropyOf))


class EntroPIC(Controlled):
    """EntroPIC as a method."""

    Config = EntroPICConfig
    MOVES = "confident_pull"

    def __init__(self, config: EntroPICConfig) -> None:
        self.config, self.needs_entropy = config, config.entropy_of == "batch"
        self.regulator = Regulator(config, PIInNats(config.kp, config.ki), 0.0, (-1.0, 1.0), raises=-1)

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        confident = tokens.logprobs > math.log(self.config.confident)
        pull = self.present(tokens).value * len(confident) / max(1, int(confident.sum()))
        return TokenTerms(shift=torch.where(confident, pull * tokens.advantages.abs(), 0.0))


class PIInNats:
    """alpha = kp e + ki I, then I <- I + e unless alpha is at a bound of [-1, 1] beyond which e would take it."""

    needs_slopes = False

    def __init__(self, kp: float, ki: float) -> None:
        self.state: State = {"integral": 0.0}
        self._kp, self._ki = kp, ki

    def next(self, seen: Seen, value: float) -> float:
        error = seen.smoothed - seen.target
        alpha = float(self._kp * error + self._ki * self.state["integral"])
        if not (abs(alpha) >= 1 and alpha * error > 0):
            self.state["integral"] += error
        return alpha
