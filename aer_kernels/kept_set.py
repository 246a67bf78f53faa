"""The kept set of a row as an option: the tokens that a sampler draws from, or that an entropy is over."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from aer_kernels.backends import row_backend
from aer_kernels.scoring import fused_floors
from aer_kernels.statistics import Tempering


@dataclass(frozen=True)
class KeptSet:
    """The most likely tokens of each distribution: exactly one of top_p and top_share says how many."""

    top_p: float | None = None
    """They reach this probability together, in (0, 1]."""
    top_share: float | None = None
    """They are this share of the vocabulary, in (0, 1], rounded up."""
    crossing: bool = True
    """top_p: whether the token with which it is reached is one of them. The most likely one always is."""

    def __post_init__(self) -> None:
        given = [value for value in (self.top_p, self.top_share) if value is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of top_p and top_share must be given, got {self.top_p} and {self.top_share}")
        if not 0 < given[0] <= 1:
            raise ValueError(f"{'top_share' if self.top_p is None else 'top_p'} must be in (0, 1], got {given[0]}")
        if not self.crossing and self.top_p in (None, 1):
            raise ValueError("crossing must be True unless top_p is below 1, got False")

    def floors(self, hidden: Tensor, weight: Tensor, **options: Any) -> Tensor:
        """Return the floor of each token's logits, (...) fp32: `fused_floors`, whose other arguments are the options here."""
        if self.top_p is not None:
            return fused_floors(hidden, weight, top_p=self.top_p, crossing=self.crossing, **options)
        return fused_floors(hidden, weight, top_k=self._count(weight.shape[0]), **options)

    def floors_of_logits(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the floor of each row of logits (R, V) fp32, divided by a temperature: (R,) fp32."""
        rows = row_backend("auto", logits.device)
        wanted = self.top_p if self.top_p is not None else float(self._count(logits.shape[1]))
        return rows.row_floors(logits, Tempering(temperature=temperature), wanted, count=self.top_p is None, crossing=self.crossing)

    def _count(self, vocab_size: int) -> int:
        assert self.top_share is not None
        return math.ceil(self.top_share * vocab_size)
