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


class AdaptiveEntropyController:
    """Chooses the entropy coefficient of each prompt and adapts it once per optimizer step.

        ctl = AdaptiveEntropyController(EntropyControlConfig())
        coef = ctl.coefficients(group_accuracy)          # (P,) alpha * w(q): give each prompt's value to its tokens
        ...forward, backward, optimizer step...
        ctl.update(entropy_sum, token_count)             # both summed over micro-batches and ranks

    alpha is fixed between two updates. The entropy given to `update` must be that of the tempered distribution and of the loss tokens
    that were trained. Evaluation must not call `update`.
    """

    def __init__(self, config: EntropyControlConfig | None = None) -> None:
        self.config = EntropyControlConfig() if config is None else config
        self._coef = min(max(self.config.coef, self.config.min_coef), self.config.max_coef)
        if self.config.kind in ("off", "aer", "proportional"):
            self._coef = 0.0
        elif self.config.kind == "fixed":
            self._coef = self.config.coef
        self._integral = 0.0
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

    def update(self, entropy_sum: float | Tensor, token_count: float | Tensor) -> float:
        """Move the coefficient by the measured entropy; returns the new alpha. Reads two numbers: a device sync when they are on a GPU.

        Args:
            entropy_sum: sum of the token entropies of the step, nats, over all micro-batches and ranks.
            token_count: number of those tokens, > 0 (a step without loss tokens changes nothing).
        Raises:
            ValueError - the entropy is not finite.
        """
        total, count = float(entropy_sum), float(token_count)
        if count <= 0:
            return self.alpha
        entropy = total / count
        if not math.isfinite(entropy):
            raise ValueError(f"entropy_sum must be finite, got {total} over {count:g} tokens")
        if self._initial is None:
            self._initial = self._smoothed = entropy
        assert self._smoothed is not None, "set together with the initial entropy"
        self._smoothed = self.config.ema * self._smoothed + (1.0 - self.config.ema) * entropy
        self._last = entropy
        self._updates += 1
        self._step(entropy)
        return self.alpha

    def _step(self, entropy: float) -> None:
        config = self.config
        if config.kind == "aer":
            self._coef = self._pi_step()
        elif config.kind == "bang_bang":
            step = config.step if entropy <= self._target() else -config.step
            self._coef = self._clip(self._coef + step)
        elif config.kind == "proportional":
            self._coef = self._clip(config.kp * max(0.0, self._target() - entropy))
        elif config.kind == "integral":
            self._coef = self._clip(self._coef + config.ki * (self._target() - entropy))

    def _pi_step(self) -> float:
        """(C4)-(C6)."""
        config, target = self.config, self._target()
        if target <= 0:  # the policy was deterministic from the start: a relative error has no meaning, nothing to hold
            return config.min_coef
        assert self._smoothed is not None, "set by update"
        error = (target - self._smoothed) / target
        output = config.kp * error + self._integral
        winding_up = (output >= config.max_coef and error > 0) or (output <= config.min_coef and error < 0)
        if not winding_up:
            self._integral = min(max(self._integral + config.ki * error, 0.0), config.max_coef)
        return self._clip(config.kp * error + self._integral)

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
            "initial_entropy": self._initial,
            "smoothed_entropy": self._smoothed,
            "last_entropy": self._last,
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state. A state of another rule is refused: its coefficient would mean something else."""
        if state["kind"] != self.config.kind:
            raise ValueError(f"state must come from a controller of kind {self.config.kind!r}, got {state['kind']!r}")
        self._coef, self._integral = state["coef"], state["integral"]
        self._initial, self._smoothed, self._last = state["initial_entropy"], state["smoothed_entropy"], state["last_entropy"]
        self._updates = state["updates"]
