"""A target of its own for each token: the entropy that the initial policy has in the same place, times one number for all.

    R_t   = entropy of the initial policy after the same tokens
    v(q)  = clip(1 - accuracy(q) / rho, 0, 1)               what is held: prompts that are not solved
    h     = sum v H / sum v R                               their entropy, in units of their own start; 1 at first
    e     = (tau - h') / tau, h' = ema h + ahead trend      tau may move, as in (C8) of `entropy_control.config`; trend: of ema h, an update
    I     = clip(I + ki e, min_coef, max_coef)              once an update; ki is fall times as large where e < 0
    alpha = min(clip(kp e + I, min_coef, max_coef) + forward B f, max_coef)
    f     = clip(1 + e / .2, 0, 1), times the part of the target's way down to tau_end that is left
    x_t   = H_t / (tau max(R_t, floor)) - 1                 how far a token is above its own target
    entropy_coef_t = alpha clip(1 - x_t / surplus, 0, 1)    where alpha >= 0; else alpha clip(x_t / .2, 0, 1)

Difficulty decides only what is held. The coefficient is given to all prompts. It needs no label of a kind of prompts, and no first batch
that looks like the later ones: what is solved leaves h, and tokens that are copied have R near 0. ahead is a brake: entropy answers late,
and a coefficient that waits for the target overshoots it. A coefficient below 0 brings entropy down: a bonus alone cannot, and prompts that
nothing solves have no reward that would. B is the coefficient at which the first orders of policy gradient and bonus cancel over this
update's tokens (`objectives.entropy_change`).

Source: this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor

from aer_kernels.entropy_control import AimConfig, Regulator
from aer_kernels.entropy_control.rules import Seen, State
from aer_kernels.methods.controlled import Controlled, ControlledConfig
from aer_kernels.methods.seam import Measured, TokenBatch, TokenTerms, check_option
from aer_kernels.objectives.entropy_change import entropy_slopes

TREND_EMA = 0.8
"""Weight of the past in the trend: h is noisy, and the integral, which falls faster than it rises, would lose by that."""

BAND = 0.2
"""Entropy this much above its target, relative, counts as not held: nothing is to push it up there."""


@dataclass(frozen=True)
class TokenTargetsConfig(ControlledConfig):
    """Options of targets for each token. The defaults, but for the target's schedule, are those that held it in the study."""

    BOUND: ClassVar[str | None] = "max_coef"
    SPEED: ClassVar[str | None] = "kp"
    UNIT: ClassVar[str] = "of the first policy's"

    kind: str = "token_targets"
    tau: float = 0.85
    """Target of every token, as a share of the initial policy's entropy in the same place, > 0."""
    ema: float = 0.5
    """Weight of the past in the smoothed h, in [0, 1)."""
    rho: float = 0.5
    """Accuracy, in (0, 1], from which on a prompt counts as solved and is not held."""
    floor: float = 0.05
    """Nats, > 0: where the initial policy was surer than this, a token's own target is tau times this."""
    kp: float = 0.5
    """Proportional gain, >= 0."""
    ki: float = 0.05
    """Integral gain of an update below the target, >= 0."""
    fall: float = 4.0
    """How many times as fast the integral falls above the target, > 0."""
    ahead: float = 8.0
    """By how many updates of its trend h is looked ahead, >= 0."""
    forward: float = 0.5
    """Share, >= 0, of the coefficient at which policy gradient and bonus cancel that is added. It is less above the target, and
    nothing from 1.2 times it on. It is less the further the target has fallen, and nothing once it is down at tau_end."""
    surplus: float = 1.0
    """A token above its target gets less bonus, and none from (1 + surplus) times it on, > 0."""
    min_coef: float = -0.1
    """Smallest coefficient, <= 0: below 0 it lowers the entropy of tokens above their own target, in full from 1.2 times it on."""
    max_coef: float = 0.6
    """Largest coefficient, >= 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("target", self.target, self.target is None, "be None (tau says how much of the initial policy's entropy is held)")
        check_option("rho", self.rho, 0 < self.rho <= 1, "be in (0, 1]")
        for name in ("floor", "fall", "surplus"):
            check_option(name, getattr(self, name), getattr(self, name) > 0, "be > 0")
        check_option("min_coef", self.min_coef, self.min_coef <= 0, "be <= 0")
        for name in ("kp", "ki", "ahead", "forward", "max_coef"):
            check_option(name, getattr(self, name), getattr(self, name) >= 0, "be >= 0")


class TokenTargets(Controlled):
    """Targets for each token as a method."""

    Config = TokenTargetsConfig
    MOVES = "coef"
    needs_entropy = True
    also_needs = frozenset({"reference_entropy"})

    def __init__(self, config: TokenTargetsConfig) -> None:
        self.config, self.needs_logprobs = config, config.forward > 0
        aim = {field.name: getattr(config, field.name) for field in fields(AimConfig)} | {"target": config.tau}
        self._rule = _Rule(config)
        self.regulator = Regulator(AimConfig(**aim), self._rule, 0.0, (config.min_coef, config.max_coef), neutral=0.0)

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        config, aim = self.config, self.regulator.target
        assert aim is not None, "it does not wait for a first entropy"
        entropy, start = tokens.need("entropy").double(), tokens.need("reference_entropy").double()
        above = entropy / (aim * start.clamp(min=config.floor)) - 1
        room = (1 - above / config.surplus).clamp(0, 1)
        alpha = min(self.regulator.value + self._forward(tokens, room, aim), config.max_coef)
        unsolved = (1 - tokens.accuracy.double() / config.rho).clamp(0, 1)[tokens.prompt_of_token]
        whole = float((unsolved * start).sum())
        held = unsolved / whole if whole > 0 else unsolved
        return TokenTerms(entropy_coef=(alpha * (room if alpha >= 0 else (above / BAND).clamp(0, 1))).float(), held=held.float())

    def _forward(self, tokens: TokenBatch, room: Tensor, aim: float) -> float:
        share = self.config.forward * min(max(1 + self._rule.state["error"] / BAND, 0.0), 1.0) * self._way_left(aim)
        return share * _balance(tokens, room) if share else 0.0

    def _way_left(self, aim: float) -> float:
        """The part of the target's way down from tau to tau_end that is left; 1 where it does not fall."""
        start, end = self.config.tau, self.config.tau_end
        return 1.0 if end is None or end >= start else max(0.0, (aim - end) / (start - end))

    def update(self, measured: Measured) -> None:
        """`measured.entropy` is h: `held` has the divisor in it."""
        self.regulator.update(measured.entropy, 1.0 if measured.tokens > 0 else 0.0, unsolved=measured.unsolved)


class _Rule:
    """I and alpha, without forward."""

    needs_slopes = False

    def __init__(self, config: TokenTargetsConfig) -> None:
        self.config = config
        self.state: State = {"integral": 0.0, "last": None, "trend": 0.0, "error": 0.0}

    def next(self, seen: Seen, value: float) -> float:
        config, last = self.config, seen.smoothed if self.state["last"] is None else self.state["last"]
        trend = TREND_EMA * self.state["trend"] + (1 - TREND_EMA) * (seen.smoothed - last)
        error = (seen.target - seen.smoothed - config.ahead * trend) / seen.target
        integral = self.state["integral"] + config.ki * (error if error > 0 else config.fall * error)
        integral = min(max(integral, config.min_coef), config.max_coef)
        self.state = {"integral": integral, "last": seen.smoothed, "trend": trend, "error": error}
        return config.kp * error + integral


def _balance(tokens: TokenBatch, room: Tensor) -> float:
    """B: 0 where the policy gradient raises entropy, or no token has room for a bonus."""
    logprobs, entropy = tokens.logprobs, tokens.need("entropy")
    slopes = entropy_slopes(logprobs, entropy, advantages=tokens.advantages, weights=room, loss_mask=room >= 0)
    return max(0.0, -float(slopes.policy) / float(slopes.bonus)) if slopes.bonus > 0 else 0.0
