"""The configuration of entropy control, and the formulas behind its symbols.

arXiv:2510.10959 names three parts: difficulty-aware allocation, a target anchored to the initial entropy, and a global coefficient that is
adjusted all the time. The formulas below are this project's concrete form of them, not the paper's.

    w(q)     = max(least_weight, 1 - accuracy(q) / rho)          difficulty weight of a prompt           (C1)
               * clip(1 - (H(q) / H* - 1) / surplus, 0, 1)       H(q): entropy of the prompt's samples
    H*       = tau * H_0                                         target; H_0 is the first measured batch (C2)
    Hbar     = ema * Hbar + (1 - ema) * H                        smoothed entropy of the batch, nats     (C3)
    e        = (H* - Hbar) / H*                                  relative error, scale-free              (C4)
    I        = clip(I + ki * e, 0, max_coef)                     frozen while the output saturates in    (C5)
                                                                 the direction of e (anti-windup)
    alpha    = clip(kp * e + I, min_coef, max_coef)              the global coefficient                  (C6)
    coef(q)  = alpha * w(q) / max(.05, mean_q w(q))              what a prompt's tokens are given        (C7)

H is the mean over all prompts. With held = "difficult" it is the mean over the prompts that the policy finds hard, weighted by

    v(q)     = max(0, 1 - accuracy(q) / rho)                     H = sum_q v(q) H(q) / sum_q v(q)        (C13)

The target can move: with tau_end it is held up to update T and then moves to tau_end in a straight line. T is hold * updates. With
settle_unsolved it is the first update at which prompts that were not solved begin to be solved, if that comes sooner:

    tau(t)   = tau + (tau_end - tau) * max(0, t - T) / (updates - T)                                     (C8)
    T        = first t with U <= settle_unsolved * U_0, at the latest hold * updates; U is the smoothed  (C9)
               share of prompts that no sample solved (`target.UNSOLVED_EMA`), U_0 its mean at first

With patience there is no bonus for that many updates, and then it is decided once whether the run has one. That is so if prompts that no
sample solves are still about as many. The rule begins there with what it knows at its start; H_0 is that of the first update all the same:

    alpha    = 0 up to update `patience`, and for the whole run unless  U_late >= U_early / 2  and  U_late > 0;     (C14)
               U_early, U_late: mean share of unsolved prompts over the first quarter and the second half of them

The gains of kind `aer` are absolute: they suit tasks that need a coefficient of the order of 0.1. The coefficient that is needed differs by
orders of magnitude with the size of the advantages, the aggregation and how peaked the policy is. Kind `balance` measures it:

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

from aer_kernels.entropy_control.aim import AimConfig, check_option

Kind = Literal["aer", "balance", "off", "fixed", "bang_bang", "proportional", "integral", "log_pi", "self_tuned"]
Difficulty = Literal["hinge", "linear", "uniform"]

RELATIVE = ("aer", "balance", "log_pi", "self_tuned")
"""Kinds whose error is relative to the target."""


@dataclass(frozen=True)
class EntropyControlConfig(AimConfig):
    """How the entropy coefficient is chosen. The module docstring has the formulas (C1)-(C14)."""

    kind: Kind = "aer"
    """The rule that moves the coefficient alpha. aer: a PI rule on the relative error (C3-C6). balance: the same rule in units of a
    coefficient that it measures in every batch (C10-C12). fixed: alpha = coef. bang_bang: a step up below the target, a step down above it,
    and no bonus while above (Skywork-OR1, TRL). proportional: kp * max(0, H* - H). integral: alpha + ki * (H* - H). log_pi: a PI rule on
    log alpha, with a brake on the slope of the entropy. self_tuned: least squares estimates how entropy responds to alpha. off: no entropy
    term."""
    quantity: Literal["token", "response"] = "token"
    """Which entropy is compared with the target. token: the mean entropy of a token. response: the mean over responses of their summed
    entropy. Nearly certain tokens that make responses longer dilute the first, not the second."""
    held: Literal["all", "difficult"] = "all"
    """Whose entropy is compared with the target. all: every prompt's. difficult: that of prompts that are not solved yet (C13). If their
    entropy does not fall there is then no bonus, whatever happens to the other prompts."""
    tau: float = 0.85
    """Target as a share of the initial entropy, > 0 (C2)."""
    ema: float = 0.5
    """Weight of the past in the smoothed entropy (C3), in [0, 1)."""
    difficulty: Difficulty = "hinge"
    """How a prompt's share of the bonus depends on its accuracy (C1). hinge: 1 - accuracy / rho. linear: the same with rho = 1. uniform:
    all prompts alike. In docs/study.md uniform does as well where prompts are of one kind, and better, with surplus, where they are of
    several kinds."""
    rho: float = 1.0
    """Accuracy, in (0, 1], from which on the hinge gives a prompt nothing beyond least_weight."""
    least_weight: float = 0.0
    """Smallest weight of hinge and linear, in [0, 1]: what a solved prompt keeps of an unsolved one's share. 1 is uniform."""
    surplus: float | None = None
    """A prompt whose own entropy is above the target gets less bonus, and none from (1 + surplus) H* on (C1). > 0; None does not look at
    it. Set it where the data are of several kinds. Without it prompts that nothing solves can keep the mean at its target alone, as noise,
    while the others sharpen."""
    patience: int | None = None
    """Updates, >= 4, without a bonus, after which it is decided whether there is one at all: only where what was not solved stayed unsolved
    (C14). A policy that has only to become surer solves it by itself, and a bonus would keep its slips. The share must be of all prompts as
    they are drawn, of which a quarter of these updates should see a hundred. None: a bonus from the start."""
    include_all_wrong: bool = True
    """Whether prompts that no sample solved get the bonus. It is their only training signal; without it less is found (docs/study.md)."""
    kp: float | None = None
    """Proportional gain, >= 0. Dimensionless, but 1/nats for kind proportional. None takes the kind's own (`rules.GAINS`)."""
    ki: float | None = None
    """Integral gain of an update, >= 0. Dimensionless, but 1/nats for kind integral. None takes the kind's own (`rules.GAINS`)."""
    coef: float = 0.0
    """The coefficient of kind fixed; the first coefficient of bang_bang and integral. >= 0."""
    min_coef: float = 0.0
    """Lower bound of the coefficient, >= 0."""
    max_coef: float = 0.6
    """Upper bound of the coefficient, and of the integral part of kind aer."""
    step: float = 0.005
    """What bang_bang adds or takes away at each update, > 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("kind", self.kind, get_args(Kind))
        _check_choice("quantity", self.quantity, ("token", "response"))
        _check_choice("held", self.held, ("all", "difficult"))
        _check_choice("difficulty", self.difficulty, get_args(Difficulty))
        check_option("rho", self.rho, 0 < self.rho <= 1, "be in (0, 1]")
        check_option("least_weight", self.least_weight, 0 <= self.least_weight <= 1, "be in [0, 1]")
        check_option("surplus", self.surplus, self.surplus is None or self.surplus > 0, "be > 0 or None")
        whole = self.patience is None or (isinstance(self.patience, int) and self.patience >= 4)
        check_option("patience", self.patience, whole, "be an integer >= 4 or None")
        ends = self.patience is None or self.updates is None or self.patience < self.updates
        check_option("patience", self.patience, ends, f"be less than updates ({self.updates}), or there is never a bonus")
        check_option("kp", self.kp, self.kp is None or self.kp >= 0, "be >= 0 or None")
        check_option("ki", self.ki, self.ki is None or self.ki >= 0, "be >= 0 or None")
        check_option("min_coef", self.min_coef, self.min_coef >= 0, "be >= 0")
        check_option("max_coef", self.max_coef, self.max_coef >= self.min_coef, f"be >= min_coef ({self.min_coef})")
        check_option("coef", self.coef, self.coef >= 0, "be >= 0")
        check_option("step", self.step, self.step > 0, "be > 0")
        if self.held == "difficult" and self.difficulty == "uniform":
            raise ValueError("held must be 'all' for difficulty='uniform' (it knows no difficult prompts), got 'difficult'")
        if self.held == "difficult" and not self.include_all_wrong:
            raise ValueError("include_all_wrong must be True for held='difficult' (what is held must get the bonus), got False")
        if self.kind in RELATIVE and self.target == 0:
            raise ValueError(f"target must be > 0 for kind={self.kind!r} (its error is relative to the target), got 0")
        if self.kind == "log_pi":
            check_option("max_coef", self.max_coef, self.max_coef > 0, "be > 0 for kind='log_pi'")

    @property
    def enabled(self) -> bool:
        """Whether there is an entropy term at all. Never derived from a coefficient: one that reached 0 must be able to rise."""
        return self.kind != "off"


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    check_option(name, repr(value), value in choices, f"be one of {', '.join(choices)}")
