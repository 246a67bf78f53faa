"""What is carried from row to row: how raw products become logits, and the running statistics of a softmax row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Logits:
    """How raw products hidden @ weight.T become logits: z = cap(raw + bias) / temperature."""

    bias: Tensor | None = None
    """(V,), may hold -inf."""
    temperature: float | Tensor = 1.0
    """> 0; a float or (n,) fp32."""
    softcap: float | None = None
    """> 0."""

    def take(self, rows: Tensor | None) -> Logits:
        """The same for some rows only (None: all)."""
        if rows is None or not isinstance(self.temperature, Tensor):
            return self
        return Logits(self.bias, self.temperature.index_select(0, rows), self.softcap)

    def part(self, rows: slice) -> Logits:
        """The same for a slice of the rows."""
        return Logits(self.bias, self.temperature[rows], self.softcap) if isinstance(self.temperature, Tensor) else self

    def temperature_of(self, rows: slice) -> float | Tensor:
        """Divisor that broadcasts over a slice of rows: a float or (n, 1)."""
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

    def part(self, rows: slice) -> RowStatistics:
        """Views of a slice of the rows."""
        return RowStatistics(self.maximum[rows], self.sum_exp[rows], self.sum_centred[rows], self.target_logit[rows])

    def take(self, rows: Tensor) -> RowStatistics:
        """Copies of some rows."""
        return RowStatistics(*(x.index_select(0, rows) for x in (self.maximum, self.sum_exp, self.sum_centred, self.target_logit)))

    def put(self, rows: Tensor, values: RowStatistics) -> None:
        """Store the statistics of some rows."""
        self.maximum[rows] = values.maximum
        self.sum_exp[rows] = values.sum_exp
        self.sum_centred[rows] = values.sum_centred
        self.target_logit[rows] = values.target_logit

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
