"""Adaptive entropy coefficients: AER (the default) and the rules it is compared with.

Source: arXiv:2510.10959 names three parts: difficulty-aware allocation, a target anchored to the initial entropy, and a global
coefficient that is adjusted all the time. The formulas below are this project's concrete form of them, not the paper's:

    w(q)     = max(0, 1 - accuracy(q) / rho)                     difficulty weight of a prompt           (C1)
    H*       = tau * H_0                                         target; H_0 is the first measured batch (C2)
    Hbar     = ema * Hbar + (1 - ema) * H                        smoothed token-mean entropy, nats       (C3)
    e        = (H* - Hbar) / H*                                  relative error, scale-free              (C4)
    I        = clip(I + ki * e, 0, max_coef)                     frozen while the output saturates in    (C5)
                                                                 the direction of e (anti-windup)
    alpha    = clip(kp * e + I, min_coef, max_coef)              the global coefficient                  (C6)
    coef(q)  = alpha * w(q) / max(weight_floor, mean_q w(q))     what a prompt's tokens are given        (C7)

That is kind `aer`. Its gains are absolute: they suit a task on which the coefficient that is needed is of the order of 0.1. Over the sizes
of advantages, aggregations of the policy term and peaks of the policy it differs by orders of magnitude, and `balance` measures it:

    B        = ema_s(max(0, -policy slope)) / ema_s(bonus slope) the coefficient at which policy         (C8)
                                                                 gradient and bonus cancel
    I        = clip(I + ki * e, 0, INTEGRAL_BOUND)               frozen as in (C5)                       (C9)
    alpha    = clip(B * (kp * e + I), min_coef, max_coef)                                                (C10)

The slopes are those of `objectives.entropy_change`, which cost nothing.

The controller is plain Python on floats: it reads four numbers a step and never touches a device by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Kind = Literal["aer", "balance", "off", "fixed", "bang_bang", "proportional", "integral"]
Difficulty = Literal["hinge", "linear", "uniform"]


GAINS = {"aer": (0.5, 0.05), "balance": (8.0, 0.15), "proportional": (0.03, 0.0), "integral": (0.0, 0.05)}
"""kp and ki of the kinds that have them, where the configuration leaves them open."""

INTEGRAL_BOUND = 5.0
"""Largest I of balance, in units of B."""

SLOPE_EMA = 0.95
"""ema_s: weight of the past in the slopes of (C8). A policy changes its scale slowly; one batch's policy slope is noisy."""

SMALLEST_BALANCE = 1e-4
"""B is never smaller, so that the rule can act again after a time without gradient."""


@dataclass(frozen=True)
class EntropyControlConfig:
    """How the entropy coefficient is chosen; see the module docstring for the symbols."""

    kind: Kind = "aer"
    """aer: PI rule (C3-C6). balance: the same in units of the balance coefficient (C8-C10). fixed: alpha = coef. bang_bang: Skywork-OR1 /
    TRL rule. proportional: kp * max(0, H* - H). integral: alpha <- clip(alpha + ki * (H* - H)). off: no entropy term."""
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
    kp: float | None = None
    """Proportional gain: dimensionless for aer and balance, 1/nats for proportional. None: as in GAINS."""
    ki: float | None = None
    """Integral gain per step: dimensionless for aer and balance, 1/nats for integral. None: as in GAINS."""
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
        _check("kp", self.kp, self.kp is None or self.kp >= 0, "be >= 0 or None")
        _check("ki", self.ki, self.ki is None or self.ki >= 0, "be >= 0 or None")
        _check("ema", self.ema, 0 <= self.ema < 1, "be in [0, 1)")
        _check("min_coef", self.min_coef, self.min_coef >= 0, "be >= 0")
        _check("max_coef", self.max_coef, self.max_coef >= self.min_coef, f"be >= min_coef ({self.min_coef})")
        _check("coef", self.coef, self.coef >= 0, "be >= 0")
        _check("step", self.step, self.step > 0, "be > 0")
        if self.kind in ("aer", "balance") and self.target == 0:
            raise ValueError(f"target must be > 0 for kind={self.kind!r} (its error is relative to the target), got 0")

    @property
    def enabled(self) -> bool:
        """Whether there is an entropy term at all. Never derived from a coefficient: one that reached 0 must be able to rise."""
        return self.kind != "off"


def _check(name: str, value: object, ok: bool, rule: str) -> None:
    if not ok:
        raise ValueError(f"{name} must {rule}, got {value}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    _check(name, repr(value), value in choices, f"be one of {', '.join(choices)}")


class AdaptiveEntropyController:
    """Chooses the entropy coefficient of each prompt and adapts it once per optimizer step.

        ctl = AdaptiveEntropyController(EntropyControlConfig())
        coef = ctl.coefficients(group_accuracy)          # (P,) alpha * w(q): give each prompt's value to its tokens
        ...forward, backward, optimizer step...
        ctl.update(entropy_sum, token_count)             # both summed over micro-batches and ranks

    alpha is fixed between two updates. The entropy given to `update` must be that of the tempered distribution and of the loss tokens
    that were trained. Kind balance also needs the slopes of `entropy_slopes` with `weights` as weights, on the same tokens. Evaluation
    must not call `update`.
    """

    def __init__(self, config: EntropyControlConfig | None = None) -> None:
        self.config = EntropyControlConfig() if config is None else config
        self._coef = min(max(self.config.coef, self.config.min_coef), self.config.max_coef)
        if self.config.kind in ("off", "aer", "balance", "proportional"):
            self._coef = 0.0
        elif self.config.kind == "fixed":
            self._coef = self.config.coef
        default_kp, default_ki = GAINS.get(self.config.kind, (0.0, 0.0))
        self._kp = default_kp if self.config.kp is None else self.config.kp
        self._ki = default_ki if self.config.ki is None else self.config.ki
        self._integral = 0.0
        self._slopes = (0.0, 0.0)
        self._initial: float | None = None
        self._smoothed: float | None = None
        self._last: float | None = None
        self._updates = 0

    @property
    def enabled(self) -> bool:
        """Whether there is an entropy term (see `EntropyControlConfig.enabled`)."""
        return self.config.enabled

    @property
    def alpha(self) -> float:
        """The global coefficient that is applied now. bang_bang withdraws it while the last entropy is above the target."""
        above = self.config.kind == "bang_bang" and self._last is not None and self._last > self._target()
        return 0.0 if above else self._coef

    @property
    def target(self) -> float | None:
        """Target entropy H* in nats; None until the initial entropy is known."""
        return None if self.config.target is None and self._initial is None else self._target()

    @property
    def initial_entropy(self) -> float | None:
        """H_0: mean entropy of the first update, nats."""
        return self._initial

    @property
    def smoothed_entropy(self) -> float | None:
        """Hbar of (C3), nats."""
        return self._smoothed

    @property
    def balance(self) -> float:
        """B of (C8): the coefficient at which policy gradient and bonus would leave the entropy as it is."""
        policy, bonus = self._slopes
        return max(policy / bonus, SMALLEST_BALANCE) if bonus > 0 else SMALLEST_BALANCE

    @property
    def saturated(self) -> bool:
        """Whether the coefficient is at its upper bound."""
        return self.config.kind not in ("off", "fixed") and self._coef >= self.config.max_coef

    def coefficients(self, group_accuracy: Tensor | Sequence[float]) -> Tensor:
        """alpha * w(q) for each prompt (C1, C7).

        Args:
            group_accuracy: (P,) mean verified reward of each prompt's samples, in [0, 1].
        Returns:
            (P,) fp32 on the device of group_accuracy, >= 0. All zero when disabled.
        """
        accuracy = torch.as_tensor(group_accuracy, dtype=torch.float32)
        if accuracy.ndim != 1:
            raise ValueError(f"group_accuracy must have shape (P,), got {tuple(accuracy.shape)}")
        if not self.enabled:
            return torch.zeros_like(accuracy)
        return self.alpha * self.weights(accuracy)

    def weights(self, accuracy: Tensor) -> Tensor:
        """w(q) (C1), divided by its mean over the prompts when `normalize_weights` is set (C7)."""
        config = self.config
        if config.difficulty == "uniform":
            weights = torch.ones_like(accuracy)
        else:
            rho = config.rho if config.difficulty == "hinge" else 1.0
            weights = (1.0 - accuracy / rho).clamp(min=0.0)
        if not config.include_all_wrong:
            weights = weights.masked_fill(accuracy <= 0, 0.0)
        if config.normalize_weights and weights.numel():
            weights = weights / weights.mean().clamp(min=config.weight_floor)
        return weights

    def update(self, entropy_sum: float | Tensor, token_count: float | Tensor, slopes: Sequence[float | Tensor] | None = None) -> float:
        """Move the coefficient by the measured entropy; returns the new alpha. Reads a few numbers: a device sync when they are on a GPU.

        Args:
            entropy_sum: sum of the token entropies of the step, nats, over all micro-batches and ranks.
            token_count: number of those tokens, > 0 (a step without loss tokens changes nothing).
            slopes: policy and bonus slope over those tokens (the first two of `EntropySlopes`); needed by kind balance.
        Raises:
            ValueError - the entropy or a slope is not finite, or kind balance gets no slopes.
        """
        total, count = float(entropy_sum), float(token_count)
        if count <= 0:
            return self.alpha
        entropy = total / count
        if not math.isfinite(entropy):
            raise ValueError(f"entropy_sum must be finite, got {total} over {count:g} tokens")
        if self.config.kind == "balance":
            self._measure_slopes(slopes, count)
        if self._initial is None:
            self._initial = self._smoothed = entropy
        assert self._smoothed is not None, "set together with the initial entropy"
        self._smoothed = self.config.ema * self._smoothed + (1.0 - self.config.ema) * entropy
        self._last = entropy
        self._updates += 1
        self._step(entropy)
        return self.alpha

    def _measure_slopes(self, slopes: Sequence[float | Tensor] | None, count: float) -> None:
        if slopes is None:
            raise ValueError("slopes must be given for kind='balance' (see entropy_slopes), got None")
        policy, bonus = float(slopes[0]) / count, float(slopes[1]) / count
        if not (math.isfinite(policy) and math.isfinite(bonus)):
            raise ValueError(f"slopes must be finite, got {policy * count} and {bonus * count}")
        keep = min(SLOPE_EMA, self._updates / (self._updates + 1))  # at first the mean of all
        self._slopes = keep * self._slopes[0] + (1 - keep) * max(0.0, -policy), keep * self._slopes[1] + (1 - keep) * bonus

    def _step(self, entropy: float) -> None:
        config = self.config
        if config.kind == "aer":
            self._coef = self._pi_step(1.0, config.max_coef)
        elif config.kind == "balance":
            self._coef = self._pi_step(self.balance, INTEGRAL_BOUND)
        elif config.kind == "bang_bang":
            step = config.step if entropy <= self._target() else -config.step
            self._coef = self._clip(self._coef + step)
        elif config.kind == "proportional":
            self._coef = self._clip(self._kp * max(0.0, self._target() - entropy))
        elif config.kind == "integral":
            self._coef = self._clip(self._coef + self._ki * (self._target() - entropy))

    def _pi_step(self, unit: float, bound: float) -> float:
        """(C4)-(C6) with B = `unit` as in (C10) and the integral in [0, `bound`]."""
        config, target = self.config, self._target()
        if target <= 0:  # the policy was deterministic from the start: a relative error has no meaning, nothing to hold
            return config.min_coef
        assert self._smoothed is not None, "set by update"
        error = (target - self._smoothed) / target
        output = unit * (self._kp * error + self._integral)
        winding_up = (output >= config.max_coef and error > 0) or (output <= config.min_coef and error < 0)
        if not winding_up:
            self._integral = min(max(self._integral + self._ki * error, 0.0), bound)
        return self._clip(unit * (self._kp * error + self._integral))

    def _target(self) -> float:
        if self.config.target is not None:
            return self.config.target
        assert self._initial is not None, "the target is known after the first update"
        return self.config.tau * self._initial

    def _clip(self, coef: float) -> float:
        return min(max(coef, self.config.min_coef), self.config.max_coef)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on as if nothing had happened; plain numbers, safe in JSON."""
        return {
            "kind": self.config.kind,
            "coef": self._coef,
            "integral": self._integral,
            "slopes": list(self._slopes),
            "initial_entropy": self._initial,
            "smoothed_entropy": self._smoothed,
            "last_entropy": self._last,
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state. A state of another rule is refused: its coefficient would mean something else."""
        if state["kind"] != self.config.kind:
            raise ValueError(f"state must come from a controller of kind {self.config.kind!r}, got {state['kind']!r}")
        self._coef, self._integral, self._slopes = state["coef"], state["integral"], tuple(state["slopes"])
        self._initial, self._smoothed, self._last = state["initial_entropy"], state["smoothed_entropy"], state["last_entropy"]
        self._updates = state["updates"]
