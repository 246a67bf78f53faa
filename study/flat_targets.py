"""Targets for each token without the pass of the initial policy: one number for all tokens in place of its entropy in the same place.

    R = sum v H / sum v over the tokens of the first update,   v(q) = clip(1 - accuracy(q) / rho, 0, 1)

All else is `aer_kernels.methods.token_targets`. What this loses is what the pass is worth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from aer_kernels.methods.seam import TokenBatch, TokenTerms
from aer_kernels.methods.token_targets import TokenTargets, TokenTargetsConfig


@dataclass(frozen=True)
class FlatTargetsConfig(TokenTargetsConfig):
    """Options of the same method."""

    kind: str = "study.flat_targets.FlatTargets"


class FlatTargets(TokenTargets):
    """One target for all tokens as a method."""

    Config = FlatTargetsConfig
    also_needs = frozenset()

    def __init__(self, config: FlatTargetsConfig) -> None:
        super().__init__(config)
        self._start: float | None = None

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        entropy = tokens.need("entropy").double()
        if not entropy.numel():
            return super().terms(replace(tokens, reference_entropy=torch.zeros_like(tokens.logprobs)))
        if self._start is None:
            unsolved = (1 - tokens.accuracy.double() / self.config.rho).clamp(0, 1)[tokens.prompt_of_token]
            whole = float(unsolved.sum())
            self._start = float((unsolved * entropy).sum()) / whole if whole > 0 else float(entropy.mean())
        return super().terms(replace(tokens, reference_entropy=torch.full_like(tokens.logprobs, self._start)))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._start = state["start"]
        super().load_state_dict({name: value for name, value in state.items() if name != "start"})
