"""What is carried from row to row: how raw products become logits, and the running statistics of a softmax row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_ZERO = -1e4
"""Stands in for a log-prob of -inf where it is multiplied by its probability, which is exactly 0 there."""


@dataclass(frozen=True)
class Logits:
    """How raw products hidden @ weight.T become logits: z = cap(raw + bias) / temperature."""

    bias: Tensor | None = None
    """(V,), may hold -inf."""
    temperature: float | Tensor = 1.0
    """> 0; a float or (n,) fp32."""
    softcap: float | None = None
    """> 0."""

    def part(self, rows: slice) -> Logits:
        """The same for a slice of the rows."""
        return Logits(self.bias, self.temperature[rows], self.softcap) if isinstance(self.temperature, Tensor) else self

    def temperature_of(self, rows: slice | Tensor) -> float | Tensor:
        """Divisor that broadcasts over some rows: a float or (n, 1)."""
        return self.temperature[rows].unsqueeze(1) if isinstance(self.temperature, Tensor) else self.temperature


@dataclass(frozen=True)
class RowStatistics:
    """Recentred softmax statistics of n rows, each (n,): equation (16) of `aer_kernels.reference`."""

    maximum: Tensor
    """m: largest logit seen, -inf before the first."""
    sum_exp: Tensor
    """s = sum exp(z - m)."""
    sum_centred: Tensor
    """t = sum exp(z - m) (z - m)."""
    target_logit: Tensor
    """z_y; NaN until the target's column was seen, so that a target outside the vocabulary is loud, never garbage."""

    @staticmethod
    def empty(num_rows: int, dtype: torch.dtype, device: torch.device) -> RowStatistics:
        """Statistics of rows of which nothing has been seen. The four vectors are rows of one (4, n) tensor."""
        packed = torch.zeros(4, num_rows, dtype=dtype, device=device)
        packed[0] = -torch.inf
        packed[3] = torch.nan
        return RowStatistics(*packed.unbind(0))

    def vectors(self) -> tuple[Tensor, ...]:
        """m, s, t, z_y."""
        return self.maximum, self.sum_exp, self.sum_centred, self.target_logit

    def packed(self) -> Tensor:
        """(4, n)."""
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
        sum_exp, sum_centred = torch.zeros_like(maximum), torch.zeros_like(maximum)
        for part in (self, other):
            drop = (part.maximum - shift).clamp(min=LOG_ZERO)
            scale = drop.exp()
            sum_exp = sum_exp + scale * part.sum_exp
            sum_centred = sum_centred + scale * (part.sum_centred + drop * part.sum_exp)
        target_logit = torch.where(self.target_logit.isnan(), other.target_logit, self.target_logit)
        return RowStatistics(maximum, sum_exp, sum_centred, target_logit)

    def logprobs(self) -> Tensor:
        """(z_y - m) - log s, nats."""
        return (self.target_logit - self.maximum) - self.sum_exp.log()

    def entropy(self) -> Tensor:
        """log s - t / s, nats, >= 0."""
        return (self.sum_exp.log() - self.sum_centred / self.sum_exp).clamp(min=0.0)

    def logsumexp(self) -> Tensor:
        """m + log s."""
        return self.maximum + self.sum_exp.log()


def target_d_logits(stats: RowStatistics, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> Tensor:
    """(12) at the target column, (n,), from the saved z_y.

    Near certainty 1 - p_y cancels, and a recomputed z_y differs from the one in m and s by the rounding of another matrix product.
    """
    logprobs = stats.logprobs()
    value = torch.zeros_like(logprobs)
    if grad_logprobs is not None:
        value = value - grad_logprobs * torch.expm1(logprobs)
    if grad_entropy is not None:
        p = logprobs.exp()
        value = value - grad_entropy * torch.where(p > 0, p * (logprobs + stats.entropy()), 0.0)
    return value
