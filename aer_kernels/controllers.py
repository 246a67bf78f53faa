"""Adaptive entropy coefficients: AER (the default) and the rules it is compared with.

Source: arXiv:2510.10959 names three parts: difficulty-aware allocation, a target anchored to the initial entropy, and a global
coefficient that is adjusted all the time. The formulas below are this project's concrete form of them, not the paper's:

    w(q)     = max(0, 1 - accuracy(q) / rho)                     difficulty weight of a prompt           (C1)
    H*       = tau * H_0                                         target; H_0 is the first measured batch (C2)
    Hbar     = ema * Hbar + (1 - ema) * H                        smoothed token-mean entropy, nats       (C3)
    e        = (H* - Hbar) / H*                                  relative error, scale-free              (C4)
    I        = clip(I + ki * e, 0, max_coef)                     frozen while the output saturates in    (C5)
                                                                 the direction of e (anti-windup)
    alpha    = clip(kp * e + I, 0, max_coef)                     the global coefficient                  (C6)
    coef(q)  = alpha * w(q) / max(weight_floor, mean_q w(q))     what a prompt's tokens are given        (C7)

The controller is plain Python on floats: it reads two numbers a step and never touches a device by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Kind = Literal["aer", "off", "fixed", "bang_bang", "proportional", "integral"]
Difficulty = Literal["hinge", "linear", "uniform"]


@dataclass(frozen=True)
class EntropyControlConfig:
    """How the entropy coefficient is chosen; see the module docstring for the symbols."""

    kind: Kind = "aer"
    """aer: PI rule (C3-C6). fixed: alpha = coef. bang_bang: Skywork-OR1 / TRL rule. proportional: kp * max(0, H* - H).
    integral: alpha <- clip(alpha + ki * (H* - H)). off: no entropy term."""
    tau: float = 0.85
    """Target as a share of the initial entropy, > 0. The paper reports about 0.4; 0.85 and 0.7 held in our small runs."""
    target: float | None = None
    """Absolute target in nats, >= 0; None means tau * H_0."""
    difficulty: Difficulty = "hinge"
    """Shape of w: hinge uses rho, linear is rho = 1, uniform is w = 1 for every prompt."""
    rho: float = 1.0
    """Accuracy in (0, 1] at which the hinge weight reaches 0."""
    include_all_wrong: bool = True
    """Whether prompts with accuracy 0 get the bonus: it is their only training signal."""
    normalize_weights: bool = True
    """Divide the weights by their batch mean, so that alpha's scale does not move with accuracy (C7)."""
    weight_floor: float = 0.05
    """Smallest divisor used by normalize_weights, in (0, 1]."""
    kp: float = 0.5
    """Proportional gain: dimensionless for aer, 1/nats for proportional."""
    ki: float = 0.05
    """Integral gain per step: dimensionless for aer, 1/nats for integral."""
    ema: float = 0.5
    """Weight of the past in the smoothed entropy, in [0, 1)."""
    coef: float = 0.0
    """The coefficient itself for fixed; the starting coefficient for bang_bang and integral. >= 0."""
    min_coef: float = 0.0
    """Lower bound of the coefficient, >= 0."""
    max_coef: float = 0.6
    """Upper bound of the coefficient (and of the integral part of aer)."""
    step: float = 0.005
    """bang_bang: what is added or taken away at each update, > 0."""

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, get_args(Kind))
        _check_choice("difficulty", self.difficulty, get_args(Difficulty))
        _check("tau", self.tau, self.tau > 0, "be > 0")
        _check("target", self.target, self.target is None or self.target >= 0, "be >= 0 or None")
        _check("rho", self.rho, 0 < self.rho <= 1, "be in (0, 1]")
        _check("weight_floor", self.weight_floor, 0 < self.weight_floor <= 1, "be in (0, 1]")
        _check("kp", self.kp, self.kp >= 0, "be >= 0")
        _check("ki", self.ki, self.ki >= 0, "be >= 0")
        _check("ema", self.ema, 0 <= self.ema < 1, "be in [0, 1)")
        _check("min_coef", self.min_coef, self.min_coef >= 0, "be >= 0")
        _check("max_coef", self.max_coef, self.max_coef >= self.min_coef, f"be >= min_coef ({self.min_coef})")
        _check("coef", self.coef, self.coef >= 0, "be >= 0")
        _check("step", self.step, self.step > 0, "be > 0")
        if self.kind == "aer" and self.target == 0:
            raise ValueError("target must be > 0 for kind='aer' (its error is relative to the target), got 0")

    @property
    def enabled(self) -> bool:
        """Whether there is an entropy term at all. Never derived from a coefficient: one that reached 0 must be able to rise."""
        return self.kind != "off"


def _check(name: str, value: object, ok: bool, rule: str) -> None:
    if not ok:
        raise ValueError(f"{name} must {rule}, got {value}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    _check(name, repr(value), value in choices, f"be one of {', '.join(choices)}")
