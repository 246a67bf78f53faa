"""EPO: an entropy bonus that turns around for tokens whose entropy leaves a corridor around its history.

    entropy_coef_t = lambda (1 + beta_k alpha (1[H_t < low Hbar] - 1[H_t > high Hbar])),   beta_k = 1 + exp(- gamma k / floor(K / 2))

Hbar is the mean of the mean entropies of all updates before, k how many these are, K how many there will be. Without a history there is no
corridor. The coefficient is the exact gradient of the paper's loss L_H - beta_k alpha ([low Hbar - H]_+ + [H - high Hbar]_+).

Source: arXiv:2509.22576, paper form (version 2), with its constants; low = 0 there leaves the upper side alone. alpha is 0.05 on
ScienceWorld. What differs: H is that of the policy that sampled, which is the present one at the first update of a batch. The release
(WujiangXu/EPO 5b6fa98) is not followed: its penalty is a constant without a gradient, it stops on an empty history, and its schedule covers
150 epochs whatever the run's length, with a jump at half time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from aer_kernels.methods.seam import Measured, TokenBatch, TokenTerms, check_option, restored


@dataclass(frozen=True)
class EPOConfig:
    """Options of EPO."""

    kind: str = "epo"
    coef: float = 0.001
    """lambda: the entropy coefficient inside the corridor, >= 0."""
    low: float = 0.0
    """Lower end of the corridor as a multiple of Hbar, >= 0."""
    high: float = 2.0
    """Upper end of the corridor as a multiple of Hbar, >= low."""
    alpha: float = 0.1
    """How much a token outside counts, >= 0."""
    gamma: float = 3.0
    """How fast beta falls from 2 to 1, >= 0."""
    updates: int | None = None
    """K, > 0. The trainer puts its own number of steps here."""

    def __post_init__(self) -> None:
        for name in ("coef", "low", "alpha", "gamma"):
            check_option(name, getattr(self, name), getattr(self, name) >= 0, "be >= 0")
        check_option("high", self.high, self.high >= self.low, f"be >= low ({self.low})")
        check_option("updates", self.updates, self.updates is None or self.updates > 0, "be > 0 or None")


class EPO:
    """EPO as a method."""

    Config = EPOConfig
    needs_logprobs = False
    needs_entropy = True
    also_needs: frozenset[str] = frozenset()

    def __init__(self, config: EPOConfig) -> None:
        if config.updates is None:
            raise ValueError("updates must be given for kind 'epo', over which beta falls, got None")
        self.config, self._half = config, max(1, config.updates // 2)
        self._state: dict[str, Any] = {"sum": 0.0, "updates": 0}

    @property
    def history(self) -> float | None:
        """Hbar, nats; None before the first update."""
        return self._state["sum"] / self._state["updates"] if self._state["updates"] else None

    @property
    def beta(self) -> float:
        """beta_k, in (1, 2]."""
        return 1.0 + math.exp(-self.config.gamma * self._state["updates"] / self._half)

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        entropy, history = tokens.need("entropy"), self.history
        coef = torch.ones_like(entropy)
        if history is not None:
            outside = (entropy < self.config.low * history).float() - (entropy > self.config.high * history).float()
            coef = coef + self.beta * self.config.alpha * outside
        return TokenTerms(entropy_coef=coef, entropy_scale=self.config.coef)

    def update(self, measured: Measured) -> None:
        if measured.tokens:
            self._state["sum"] += measured.entropy / measured.tokens
            self._state["updates"] += 1

    def status(self) -> dict[str, float | None]:
        return {"beta": self.beta, "history": self.history}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = restored(self._state, state)
