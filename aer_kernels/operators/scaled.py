"""Held gradients times the upstream gradient of the loss, which is only known in the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from aer_kernels.validate import row_backend


@torch.library.custom_op(
    "aer_kernels::scaled", mutates_args=(), schema="(Tensor values, Tensor factor, ScalarType dtype, str impl) -> Tensor"
)
def scaled(values: Tensor, factor: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    """values * factor in fp32, rounded once to dtype. Out of place: the graph may be retained for another backward pass."""
    out = torch.empty_like(values, dtype=dtype)
    row_backend(impl, values.device).scale(values, factor, out, add=False)
    return out


@scaled.register_fake
def _(values: Tensor, factor: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    return torch.empty_like(values, dtype=dtype)


@torch.library.custom_op(
    "aer_kernels::add_scaled_", mutates_args=("out",), schema="(Tensor(a!) out, Tensor values, Tensor factor, str impl) -> ()"
)
def add_scaled_(out: Tensor, values: Tensor, factor: Tensor, impl: str) -> None:
    """out += values * factor, in the dtype of out."""
    row_backend(impl, values.device).scale(values, factor, out, add=True)


@add_scaled_.register_fake
def _(out: Tensor, values: Tensor, factor: Tensor, impl: str) -> None:
    return None
