"""A linear head on the tokens that count, and the gradients it is to give."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from aer_kernels.blocked import gemm
from aer_kernels.blocked.selection import Selection
from aer_kernels.statistics import Tempering


class Factor(NamedTuple):
    """One product of the head: logits = sum of hidden @ weight.T over the factors (the head itself, and a low-rank update of it)."""

    hidden: Tensor
    """(N, D)"""
    weight: Tensor
    """(V, D)"""


class HeadNeeds(NamedTuple):
    """Which gradients are needed; hidden and weight for each factor."""

    hidden: tuple[bool, ...]
    weight: tuple[bool, ...]
    bias: bool

    def any(self) -> bool:
        """Whether there is anything to differentiate."""
        return any(self.hidden) or any(self.weight) or self.bias


class HeadGradients(NamedTuple):
    """Gradients of a linear head; None where not needed."""

    hidden: tuple[Tensor | None, ...]
    """(N, D) for each factor"""
    weight: tuple[Tensor | None, ...]
    """(V, D) for each factor"""
    bias: Tensor | None
    """(V,)"""


@dataclass(frozen=True)
class Head:
    """The head, restricted to a selection of its tokens."""

    factors: tuple[Factor, ...]
    selection: Selection
    targets: Tensor
    """(size,) int64, one for each row of the selection, counted from the first vocabulary row that is here."""
    tempering: Tempering
    """With a per-token temperature of `size` entries."""
    backend: ModuleType
    group: str | None = None
    """Process group over which the vocabulary is split."""

    @property
    def vocab_size(self) -> int:
        """Rows of the weight that are here."""
        return self.factors[0].weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of hidden and weight."""
        return self.factors[0].hidden.dtype

    @property
    def like(self) -> Tensor:
        """A tensor on the right device to make others from."""
        return self.factors[0].hidden

    def hidden_of(self, rows: slice) -> tuple[Tensor, ...]:
        """Hidden states of some rows of the selection, for each factor."""
        tokens = self.selection.tokens(rows)
        return tuple(f.hidden[tokens] if isinstance(tokens, slice) else f.hidden.index_select(0, tokens) for f in self.factors)

    def logits_(self, out: Tensor, hidden: tuple[Tensor, ...], columns: slice) -> Tensor:
        """Raw logits of a block into out, in fp32."""
        for i, (x, factor) in enumerate(zip(hidden, self.factors, strict=True)):
            gemm.logits_(out, x, factor.weight[columns], add=i > 0)
        return out
