"""How the global coefficient moves, once an update: a class a rule. All that a rule remembers is in `state`, plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from aer_kernels.entropy_control.config import EntropyControlConfig
from aer_kernels.entropy_control.smoothing import smoothed

GAINS = {"aer": (0.5, 0.05), "balance": (8.0, 0.15), "log_pi": (2.0, 0.5), "proportional": (0.03, 0.0), "integral": (0.0, 0.05)}
"""kp and ki of the kinds that have them, where the configuration leaves them open."""

INTEGRAL_BOUND = 5.0
"""Largest I of balance, in units of B."""

SLOPE_EMA = 0.95
"""ema_s: weight of the past in the slopes of (C10). A policy changes its scale slowly; one batch's policy slope is noisy."""

SMALLEST_BALANCE = 1e-4
"""B is never smaller, so that the rule can act again after a time without gradient."""

State = dict[str, Any]


class Seen(NamedTuple):
    """What an update of the policy showed, nats."""

    entropy: float
    smoothed: float
    """Hbar of (C3)."""
    target: float
    """H*."""
    slopes: tuple[float, float] | None
    """Policy and bonus slope per token."""
    updates: int
    """Updates so far, this one included."""

    @property
    def error(self) -> float:
        """e of (C4)."""
        return (self.target - self.smoothed) / self.target

    @property
    def side(self) -> int:
        """sgn(H* - Hbar): 1 below the target, -1 above it, 0 at it."""
        return (self.smoothed < self.target) - (self.smoothed > self.target)


class Rule(Protocol):
    """A rule: number <- next(what was seen). All that it remembers is in its state."""

    state: State
    needs_slopes: bool
    """Whether it needs `Seen.slopes`."""

    def next(self, seen: Seen, value: float) -> float:
        """Return the number of the next update, before it is clipped to its bounds; `value` is the present one."""


def make_rule(config: EntropyControlConfig) -> Rule:
    """Return the rule of a configuration, with its gains filled in."""
    kp, ki = GAINS.get(config.kind, (0.0, 0.0))
    kp, ki = kp if config.kp is None else config.kp, ki if config.ki is None else config.ki
    if config.kind == "aer":
        return PI(kp, ki, config)
    if config.kind == "balance":
        return Balance(kp, ki, config)
    if config.kind == "log_pi":
        return LogPI(kp, ki, config)
    if config.kind == "self_tuned":
        return SelfTuned()
    if config.kind == "bang_bang":
        return Plain(lambda seen, coef: coef + (config.step if seen.entropy <= seen.target else -config.step))
    if config.kind == "proportional":
        return Plain(lambda seen, coef: kp * max(0.0, seen.target - seen.entropy))
    if config.kind == "integral":
        return Plain(lambda seen, coef: coef + ki * (seen.target - seen.entropy))
    return Plain(lambda seen, coef: coef)


class Plain:
    """A rule without memory: a function of what was seen and of the present number."""

    needs_slopes = False

    def __init__(self, function: Callable[[Seen, float], float]) -> None:
        self.state: State = {}
        self._function = function

    def next(self, seen: Seen, value: float) -> float:
        return self._function(seen, value)


class PI:
    """(C4)-(C6)."""

    needs_slopes = False

    def __init__(self, kp: float, ki: float, config: EntropyControlConfig) -> None:
        self.state: State = {"integral": 0.0}
        self._kp, self._ki, self._low, self._high = kp, ki, config.min_coef, config.max_coef

    def next(self, seen: Seen, coef: float) -> float:
        return self._output(seen, 1.0, self._high)

    def _output(self, seen: Seen, unit: float, bound: float) -> float:
        """(C4)-(C6) in multiples of `unit`, with the integral in [0, `bound`]."""
        if seen.target <= 0:  # the policy was deterministic from the start: a relative error has no meaning, nothing to hold
            return self._low
        error, integral = seen.error, self.state["integral"]
        output = unit * (self._kp * error + integral)
        winding_up = (output >= self._high and error > 0) or (output <= self._low and error < 0)
        if not winding_up:
            integral = self.state["integral"] = min(max(integral + self._ki * error, 0.0), bound)
        return max(unit * (self._kp * error + integral), self._low)


class Balance(PI):
    """(C10)-(C12)."""

    needs_slopes = True

    def __init__(self, kp: float, ki: float, config: EntropyControlConfig) -> None:
        super().__init__(kp, ki, config)
        self.state["slopes"] = [0.0, 0.0]

    @property
    def unit(self) -> float:
        """B of (C10)."""
        policy, bonus = self.state["slopes"]
        return max(policy / bonus, SMALLEST_BALANCE) if bonus > 0 else SMALLEST_BALANCE

    def next(self, seen: Seen, coef: float) -> float:
        assert seen.slopes is not None, "checked by the controller"
        found = (max(0.0, -seen.slopes[0]), seen.slopes[1])
        self.state["slopes"] = [smoothed(old, new, SLOPE_EMA, seen.updates) for old, new in zip(self.state["slopes"], found, strict=True)]
        return self._output(seen, self.unit, INTEGRAL_BOUND)


class LogPI:
    """PI on log alpha between FLOOR and max_coef, with anti-windup and a brake: BRAKE times Hbar's last relative change is taken off."""

    FLOOR, BRAKE = 1e-2, 5.0
    needs_slopes = False

    def __init__(self, kp: float, ki: float, config: EntropyControlConfig) -> None:
        self._low, self._high = math.log(min(self.FLOOR, config.max_coef)), math.log(config.max_coef)
        self.state: State = {"integral": self._low, "last": None}
        self._kp, self._ki = kp, ki

    def next(self, seen: Seen, coef: float) -> float:
        if seen.target <= 0:
            return 0.0
        last = seen.smoothed if self.state["last"] is None else self.state["last"]
        self.state["last"] = seen.smoothed
        error, rest = seen.error, self._kp * seen.error - self.BRAKE * (seen.smoothed - last) / seen.target
        output = self.state["integral"] + rest
        if not ((output >= self._high and error > 0) or (output <= self._low and error < 0)):
            self.state["integral"] = min(max(self.state["integral"] + self._ki * error, self._low), self._high)
        output = self.state["integral"] + rest
        return math.exp(min(output, self._high)) if output > self._low else 0.0


class SelfTuned:
    """The response of the entropy is taken to be (change of Hbar) / H* = a + g alpha; a and g are estimated by recursive least squares that
    forgets, and alpha is chosen so that the predicted change closes PULL of the gap to the target."""

    PULL, FORGET, NOISE, SMALLEST_GAIN = 0.2, 0.95, 4e-4, 0.02
    needs_slopes = False

    def __init__(self) -> None:
        self.state: State = {"last": None, "model": [-0.01, 0.1], "covariance": [1e-4, 0.0, 1e-2]}

    def next(self, seen: Seen, coef: float) -> float:
        if seen.target <= 0:
            return 0.0
        if self.state["last"] is not None:
            self._learn((seen.smoothed - self.state["last"]) / seen.target, coef)
        self.state["last"] = seen.smoothed
        drift, gain = self.state["model"]
        return float((self.PULL * seen.error - drift) / max(gain, self.SMALLEST_GAIN))

    def _learn(self, change: float, alpha: float) -> None:
        """One step of least squares; the covariance [paa, pag, pgg] grows to at most 1 when nothing is learned."""
        (drift, gain), (paa, pag, pgg) = self.state["model"], self.state["covariance"]
        along = (paa + alpha * pag, pag + alpha * pgg)
        size = along[0] + alpha * along[1] + self.NOISE
        k = (along[0] / size, along[1] / size)
        missed = change - drift - gain * alpha
        self.state["model"] = [drift + k[0] * missed, max(gain + k[1] * missed, self.SMALLEST_GAIN)]
        grown = (paa - k[0] * along[0], pag - k[0] * along[1], pgg - k[1] * along[1])
        self.state["covariance"] = [min(value / self.FORGET, 1.0) for value in grown]
