"""Held gradients times the upstream gradient of the loss, which is only known in the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from aer_kernels.backends import row_backend


@torch.library.custom_op(
    "aer_kernels::scaled", mutates_args=(), schema="(Tensor values, Tensor factor, ScalarType dtype, str impl) -> Tensor"
)
def scaled(values: Tensor, factor: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    """values * factor in fp32, rounded once to dtype."""
    out = torch.empty_like(values, dtype=dtype)
    row_backend(impl, values.device).scale(values, factor, out, add=False)
    return out


@scaled.register_fake
def _(values: Tensor, factor: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    return torch.empty_like(values, dtype=dtype)


@torch.library.custom_op("aer_kernels::scale_", mutates_args=("values",), schema="(Tensor(a!) values, Tensor factor, str impl) -> ()")
def scale_(values: Tensor, factor: Tensor, impl: str) -> None:
    """values *= factor in fp32."""
    row_backend(impl, values.device).scale(values, factor, values, add=False)


@scale_.register_fake
def _(values: Tensor, factor: Tensor, impl: str) -> None:
    return None


def handed_out(values: Tensor, factor: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    """A stored gradient times the upstream gradient: that memory itself if no other backward pass will come for it.

    A factor of 1 then costs nothing: a CPU reads it, a GPU finds out in the kernel.
    """
    if values.dtype != dtype or not _is_last_pass(values):
        return scaled(values, factor, dtype, impl)
    if values.device.type == "cpu":
        return values if factor == 1 else scaled(values, factor, dtype, impl)
    scale_(values, factor, impl)
    return values


def _is_last_pass(gradient: Tensor) -> bool:
    """Whether the running backward pass frees its graph. Unknown under a compiler, which sees other kinds of tensor.

    PyTorch says so only to itself (its own donated buffers ask the same function); where it does not, a copy is made.
    """
    keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return type(gradient) is Tensor and not torch.compiler.is_compiling() and keeps_graph is not None and not keeps_graph()


@torch.library.custom_op(
    "aer_kernels::add_scaled_", mutates_args=("out",), schema="(Tensor(a!) out, Tensor values, Tensor factor, str impl) -> ()"
)
def add_scaled_(out: Tensor, values: Tensor, factor: Tensor, impl: str) -> None:
    """out += values * factor, in the dtype of out."""
    row_backend(impl, values.device).scale(values, factor, out, add=True)


@add_scaled_.register_fake
def _(out: Tensor, values: Tensor, factor: Tensor, impl: str) -> None:
    return None
