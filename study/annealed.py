"""A fixed entropy coefficient that is taken back by the clock: what a target that settles does, without any feedback.

entropy_coef_t = coef (1 - max(0, k - T) / (updates - T)),   T = hold updates              k updates are done
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from aer_kernels.methods.seam import Measured, TokenBatch, TokenTerms, check_option, restored


@dataclass(frozen=True)
class AnnealedConfig:
    """Options of the annealed coefficient."""

    kind: str = "study.annealed.Annealed"
    coef: float = 0.1
    """The coefficient at first, >= 0."""
    hold: float = 0.4
    """Share of the updates, in [0, 1), after which it begins to fall to 0."""
    updates: int | None = None
    """How many there will be, > 0. The trainer puts its own number of steps here."""

    def __post_init__(self) -> None:
        check_option("coef", self.coef, self.coef >= 0, "be >= 0")
        check_option("hold", self.hold, 0 <= self.hold < 1, "be in [0, 1)")
        check_option("updates", self.updates, self.updates is None or self.updates > 0, "be > 0 or None")


class Annealed:
    """The annealed coefficient as a method."""

    Config = AnnealedConfig
    needs_entropy = False
    needs_logprobs = False

    def __init__(self, config: AnnealedConfig) -> None:
        if config.updates is None:
            raise ValueError("updates must be given for an annealed coefficient, got None")
        self.config, self._updates = config, config.updates
        self._state: dict[str, Any] = {"updates": 0}

    @property
    def coef(self) -> float:
        """The present coefficient."""
        start = self.config.hold * self._updates
        return self.config.coef * (1.0 - max(0.0, self._state["updates"] - start) / (self._updates - start))

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        return TokenTerms(entropy_coef=torch.ones_like(tokens.logprobs), entropy_scale=self.coef)

    def update(self, measured: Measured) -> None:
        self._state["updates"] += 1

    def status(self) -> dict[str, float | None]:
        return {"coef": self.coef}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = restored(self._state, state)
