"""The configuration of entropy control, and the formulas behind its symbols.

Source: arXiv:2510.10959 names three parts: difficulty-aware allocation, a target anchored to the initial entropy, and a global
coefficient that is adjusted all the time. The formulas below are this project's concrete form of them, not the paper's:

    w(q)     = max(least_weight, 1 - accuracy(q) / rho)          difficulty weight of a prompt           (C1)
               * clip(1 - (H(q) / H* - 1) / surplus, 0, 1)       H(q): entropy of the prompt's samples
    H*       = tau * H_0                                         target; H_0 is the first measured batch (C2)
    Hbar     = ema * Hbar + (1 - ema) * H                        smoothed entropy of the batch, nats     (C3)
    e        = (H* - Hbar) / H*                                  relative error, scale-free              (C4)
    I        = clip(I + ki * e, 0, max_coef)                     frozen while the output saturates in    (C5)
                                                                 the direction of e (anti-windup)
    alpha    = clip(kp * e + I, min_coef, max_coef)              the global coefficient                  (C6)
    coef(q)  = alpha * w(q) / max(weight_floor, mean_q w(q))     what a prompt's tokens are given        (C7)

H is the mean over all prompts or, with held = "difficult", over those that are hard for the policy, each as it is weighed by

    v(q)     = max(0, 1 - accuracy(q) / rho)                     H = sum_q v(q) H(q) / sum_q v(q)        (C13)

Explore first, then settle: with tau_end the target is held up to update T and then moves to tau_end in a straight line. T is hold *
updates or, with settle_unsolved, the first update at which what was not solved begins to be:

    tau(t)   = tau + (tau_end - tau) * max(0, t - T) / (updates - T)                                     (C8)
    T        = first t with U <= settle_unsolved * U_0, at the latest hold * updates; U is the smoothed  (C9)
               share of prompts that no sample solved (`target.UNSOLVED_EMA`), U_0 its mean at first

The gains of kind `aer` are absolute: they suit a task on which the coefficient that is needed is of the order of 0.1. Over the sizes of
advantages, aggregations of the policy term and peaks of the policy it differs by orders of magnitude, and `balance` measures it:

    B        = ema_s(max(0, -policy slope)) / ema_s(bonus slope) the coefficient at which policy         (C10)
                                                                 gradient and bonus cancel
    I        = clip(I + ki * e, 0, INTEGRAL_BOUND)               frozen as in (C5)                       (C11)
    alpha    = clip(B * (kp * e + I), min_coef, max_coef)                                                (C12)

The slopes are those of `objectives.entropy_change`, which cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["aer", "balance", "off", "fixed", "bang_bang", "proportional", "integral", "log_pi", "self_tuned"]
Difficulty = Literal["hinge", "linear", "uniform"]

RELATIVE = ("aer", "balance", "log_pi", "self_tuned")
"""Kinds whose error is relative to the target."""


@dataclass(frozen=True)
class EntropyControlConfig:
    """How the entropy coefficient is chosen; see the module docstring for the symbols."""

    kind: Kind = "aer"
    """aer: PI rule (C3-C6). balance: the same in units of the balance coefficient (C10-C12). fixed: alpha = coef. bang_bang: Skywork-OR1 /
    TRL rule. proportional: kp * max(0, H* - H). integral: alpha <- clip(alpha + ki * (H* - H)). log_pi: PI on log alpha, with a brake on
    the slope of the entropy. self_tuned: the response of the entropy to alpha is estimated by recursive least squares. off: no entropy
    term."""
    quantity: Literal["token", "response"] = "token"
    """What is held, and what the caller counts in `update`. token: mean entropy of a token. response: mean of the summed entropy of a
    response, which nearly certain tokens that make responses longer do not dilute."""
    held: Literal["all", "difficult"] = "all"
    """Whose entropy is held. all: that of every prompt. difficult: that of prompts which are not solved yet (C13): where the entropy of
    these does not fall there is then no bonus, whatever happens to the others."""
    tau: float = 0.85
    """Target as a share of the initial entropy, > 0."""
    tau_end: float | None = None
    """Share at the last update, > 0 (C8); None: tau is held to the end. Needs `updates`, which the trainer fills in."""
    hold: float = 0.5
    """Share of the updates in [0, 1) before the target moves to tau_end."""
    settle_unsolved: float | None = None
    """In (0, 1): the target moves sooner than `hold` if the share of prompts that no sample solves has fallen to this part of what it was
    at first (C9). None: it does not look, which in docs/study.md is as good."""
    updates: int | None = None
    """Updates of the controller over the whole run, > 0; only tau_end needs it. The trainer puts its own number of steps here."""
    target: float | None = None
    """Absolute target in nats, >= 0; None means tau * H_0. With tau_end it moves to target * tau_end / tau."""
    difficulty: Difficulty = "hinge"
    """Shape of w: hinge uses rho, linear is rho = 1, uniform is w = 1 for every prompt. In docs/study.md uniform does as well where prompts
    are of one kind, since a bonus on some of them raises the entropy of all, and with surplus better where they are of several kinds."""
    rho: float = 1.0
    """Accuracy in (0, 1] at which 1 - accuracy / rho of the hinge reaches 0."""
    least_weight: float = 0.0
    """Smallest w of hinge and linear, in [0, 1]: the share of the pressure on an unsolved prompt that a solved one keeps. 1 is uniform."""
    surplus: float | None = None
    """> 0: a prompt whose own entropy is above the target gets less, and nothing from (1 + surplus) H* on (C1). None: it does not matter.
    Without it the prompts that get most, and have no reward to hold them, can keep the mean at its target alone, as noise: set it where
    the data are of several kinds."""
    include_all_wrong: bool = True
    """Whether prompts with accuracy 0 get the bonus: it is their only training signal, and without it less is found (docs/study.md)."""
    normalize_weights: bool = True
    """Divide the weights by their batch mean, so that alpha's scale does not move with accuracy (C7)."""
    weight_floor: float = 0.05
    """Smallest divisor used by normalize_weights, in (0, 1]."""
    kp: float | None = None
    """Proportional gain: dimensionless but for proportional, where it is 1/nats. None: as in `rules.GAINS`."""
    ki: float | None = None
    """Integral gain per step: dimensionless but for integral, where it is 1/nats. None: as in `rules.GAINS`."""
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
        _check_choice("quantity", self.quantity, ("token", "response"))
        _check_choice("held", self.held, ("all", "difficult"))
        _check_choice("difficulty", self.difficulty, get_args(Difficulty))
        _check("tau", self.tau, self.tau > 0, "be > 0")
        _check("tau_end", self.tau_end, self.tau_end is None or self.tau_end > 0, "be > 0 or None")
        _check("hold", self.hold, 0 <= self.hold < 1, "be in [0, 1)")
        _check(
            "settle_unsolved", self.settle_unsolved, self.settle_unsolved is None or 0 < self.settle_unsolved < 1, "be in (0, 1) or None"
        )
        _check("updates", self.updates, self.updates is None or self.updates > 0, "be > 0 or None")
        _check("target", self.target, self.target is None or self.target >= 0, "be >= 0 or None")
        _check("rho", self.rho, 0 < self.rho <= 1, "be in (0, 1]")
        _check("least_weight", self.least_weight, 0 <= self.least_weight <= 1, "be in [0, 1]")
        _check("surplus", self.surplus, self.surplus is None or self.surplus > 0, "be > 0 or None")
        _check("weight_floor", self.weight_floor, 0 < self.weight_floor <= 1, "be in (0, 1]")
        _check("kp", self.kp, self.kp is None or self.kp >= 0, "be >= 0 or None")
        _check("ki", self.ki, self.ki is None or self.ki >= 0, "be >= 0 or None")
        _check("ema", self.ema, 0 <= self.ema < 1, "be in [0, 1)")
        _check("min_coef", self.min_coef, self.min_coef >= 0, "be >= 0")
        _check("max_coef", self.max_coef, self.max_coef >= self.min_coef, f"be >= min_coef ({self.min_coef})")
        _check("coef", self.coef, self.coef >= 0, "be >= 0")
        _check("step", self.step, self.step > 0, "be > 0")
        if self.held == "difficult" and self.difficulty == "uniform":
            raise ValueError("held must be 'all' for difficulty='uniform' (it knows no difficult prompts), got 'difficult'")
        if self.held == "difficult" and not self.include_all_wrong:
            raise ValueError("include_all_wrong must be True for held='difficult' (what is held must get the bonus), got False")
        if self.settle_unsolved is not None and self.tau_end is None:
            raise ValueError(f"settle_unsolved must be None without tau_end, got {self.settle_unsolved}")
        if self.kind in RELATIVE and self.target == 0:
            raise ValueError(f"target must be > 0 for kind={self.kind!r} (its error is relative to the target), got 0")
        if self.kind == "log_pi":
            _check("max_coef", self.max_coef, self.max_coef > 0, "be > 0 for kind='log_pi'")

    @property
    def enabled(self) -> bool:
        """Whether there is an entropy term at all. Never derived from a coefficient: one that reached 0 must be able to rise."""
        return self.kind != "off"


def _check(name: str, value: object, ok: bool, rule: str) -> None:
    if not ok:
        raise ValueError(f"{name} must {rule}, got {value}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    _check(name, repr(value), value in choices, f"be one of {', '.join(choices)}")
