"""What is carried from row to row: how raw products become logits, and the running statistics of a softmax row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_ZERO = -1e4
"""Stands in for a log-prob of -inf where it is multiplied by its probability, which is exactly 0 there."""


@dataclass(frozen=True)
class Tempering:
    """How raw products hidden @ weight.T become logits: z = cap(raw + bias) / temperature, and which of them count."""

    bias: Tensor | None = None
    """(V,), may hold -inf."""
    temperature: float | Tensor = 1.0
    """> 0; a float or (n,) fp32."""
    softcap: float | None = None
    """> 0."""
    floor: Tensor | None = None
    """(n,) fp32: logits below it are left out of the sums."""
    entropy_alone: bool = False
    """Whether the floor is that of the entropy only."""

    def part(self, rows: slice) -> Tempering:
        """The same for a slice of the rows."""
        temperature = self.temperature[rows] if isinstance(self.temperature, Tensor) else self.temperature
        floor = None if self.floor is None else self.floor[rows]
        return Tempering(self.bias, temperature, self.softcap, floor, self.entropy_alone)

    def temperature_of(self, rows: slice | Tensor) -> float | Tensor:
        """Divisor that broadcasts over some rows: a float or (n, 1)."""
        return self.temperature[rows].unsqueeze(1) if isinstance(self.temperature, Tensor) else self.temperature

    @property
    def num_statistics(self) -> int:
        """Vectors that a row carries."""
        return 5 if self.floor is not None and self.entropy_alone else 4


@dataclass(frozen=True)
class RowStatistics:
    """Recentred softmax statistics of n rows, each (n,): equation (16) of `aer_kernels.reference`."""

    maximum: Tensor
    """m: largest logit seen, -inf before the first."""
    sum_exp: Tensor
    """s = sum exp(z - m)."""
    sum_centred: Tensor
    """t = sum exp(z - m) (z - m), over the logits of the entropy."""
    target_logit: Tensor
    """z_y; NaN until the target's column was seen, so that a target outside the vocabulary is loud, never garbage."""
    sum_kept: Tensor | None = None
    """k = sum exp(z - m) over the logits of the entropy, where these are not all."""

    @staticmethod
    def empty(num_rows: int, dtype: torch.dtype, device: torch.device, num_statistics: int = 4) -> RowStatistics:
        """Statistics of rows of which nothing has been seen. The vectors are rows of one tensor."""
        packed = torch.zeros(num_statistics, num_rows, dtype=dtype, device=device)
        packed[0] = -torch.inf
        packed[3] = torch.nan
        return RowStatistics(*packed.unbind(0))

    def vectors(self) -> tuple[Tensor, ...]:
        """m, s, t, z_y and, where there is one, k."""
        every = (self.maximum, self.sum_exp, self.sum_centred, self.target_logit)
        return every if self.sum_kept is None else (*every, self.sum_kept)

    def packed(self) -> Tensor:
        """(4 or 5, n)."""
        return torch.stack(self.vectors())

    def part(self, rows: slice | Tensor) -> RowStatistics:
        """Some of the rows: views of a slice, copies of others."""
        return RowStatistics(*(x[rows] for x in self.vectors()))

    def copy_(self, values: RowStatistics) -> None:
        """Overwrite with the statistics of as many rows."""
        for mine, theirs in zip(self.vectors(), values.vectors(), strict=True):
            mine.copy_(theirs)

    def merge(self, other: RowStatistics) -> RowStatistics:
        """(16) for the union of two disjoint sets of columns."""
        maximum = torch.maximum(self.maximum, other.maximum)
        shift = maximum.masked_fill(maximum == -torch.inf, 0.0)
        sum_exp, sum_centred, sum_kept = (torch.zeros_like(maximum) for _ in range(3))
        for part in (self, other):
            drop = (part.maximum - shift).clamp(min=LOG_ZERO)
            scale = drop.exp()
            sum_exp = sum_exp + scale * part.sum_exp
            sum_centred = sum_centred + scale * (part.sum_centred + drop * part.mass)
            sum_kept = sum_kept + scale * part.mass
        target_logit = torch.where(self.target_logit.isnan(), other.target_logit, self.target_logit)
        return RowStatistics(maximum, sum_exp, sum_centred, target_logit, None if self.sum_kept is None else sum_kept)

    @property
    def mass(self) -> Tensor:
        """k: sum exp(z - m) over the logits of the entropy; s where these are all."""
        return self.sum_exp if self.sum_kept is None else self.sum_kept

    def logprobs(self) -> Tensor:
        """(z_y - m) - log s, nats."""
        return (self.target_logit - self.maximum) - self.sum_exp.log()

    def entropy(self) -> Tensor:
        """log k - t / k, nats, >= 0; NaN where k is 0."""
        return (self.mass.log() - self.sum_centred / self.mass).clamp(min=0.0)

    def logsumexp(self) -> Tensor:
        """m + log s."""
        return self.maximum + self.sum_exp.log()


def target_d_logits(stats: RowStatistics, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, floor: Tensor | None = None) -> Tensor:
    """(12) at the target column, (n,), from the saved z_y.

    Near certainty 1 - p_y cancels, and a recomputed z_y differs from the one in m and s by the rounding of another matrix product.

    floor: (n,) of the entropy alone; a target below it has no part in the entropy.
    """
    logprobs = stats.logprobs()
    value = torch.zeros_like(logprobs)
    if grad_logprobs is not None:
        value = value - grad_logprobs * torch.expm1(logprobs)
    if grad_entropy is not None:
        logq = logprobs if stats.sum_kept is None else (stats.target_logit - stats.maximum) - stats.sum_kept.log()
        q = logq.exp() if floor is None else torch.where(stats.target_logit >= floor, logq.exp(), 0.0)
        value = value - grad_entropy * torch.where(q > 0, q * (logq + stats.entropy()), 0.0)
    return value
