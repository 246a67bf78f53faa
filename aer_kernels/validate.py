"""Checks of user input, from metadata alone (no device sync), phrased `<name> must <rule>, got <value>`."""

from __future__ import annotations

import os
from types import ModuleType

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "triton", "torch", "reference")
LOW_PRECISION = (torch.float32, torch.bfloat16, torch.float16)


def check_head(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, impl: str) -> None:
    """Shapes, dtypes and devices of a linear head and its targets."""
    check_tensor("hidden", hidden)
    check_tensor("weight", weight)
    check_tensor("targets", targets)
    _float_dtype("hidden", hidden, impl)
    if hidden.ndim < 1 or (hidden.ndim == 1 and targets.ndim != 0):
        raise ValueError(f"hidden must have shape (..., D), got {_shape(hidden)}")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(f"weight must have shape (V, {hidden.shape[-1]}) to match hidden {_shape(hidden)}, got {_shape(weight)}")
    if weight.shape[0] < 1:
        raise ValueError(f"weight must have at least one row, got {_shape(weight)}")
    if weight.dtype != hidden.dtype:
        raise TypeError(f"weight must have the dtype of hidden ({hidden.dtype}), got {weight.dtype}")
    check_targets(targets, hidden.shape[:-1], hidden.device)
    _same_device("weight", weight, hidden.device)
    if bias is not None:
        check_tensor("bias", bias)
        if tuple(bias.shape) != (weight.shape[0],):
            raise ValueError(f"bias must have shape ({weight.shape[0]},) to match weight {_shape(weight)}, got {_shape(bias)}")
        if not bias.is_floating_point():
            raise TypeError(f"bias must have a float dtype, got {bias.dtype}")
        _same_device("bias", bias, hidden.device)


def check_logits(logits: Tensor, targets: Tensor, impl: str) -> None:
    """Shape, dtype and device of logits and their targets."""
    check_tensor("logits", logits)
    check_tensor("targets", targets)
    _float_dtype("logits", logits, impl)
    if logits.ndim < 1 or logits.shape[-1] < 1:
        raise ValueError(f"logits must have shape (..., V) with V >= 1, got {_shape(logits)}")
    check_targets(targets, logits.shape[:-1], logits.device)


def check_targets(targets: Tensor, shape: torch.Size, device: torch.device) -> None:
    """Targets: integer, one for each token."""
    if targets.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"targets must be int64 or int32, got {targets.dtype}")
    if targets.shape != shape:
        raise ValueError(f"targets must have shape {tuple(shape)}, one target a token, got {_shape(targets)}")
    _same_device("targets", targets, device)


def per_token(name: str, value: Tensor, targets: Tensor, *, integer: bool = False) -> Tensor:
    """Check a per-token tensor and return it flat, (N,), broadcast to the shape of targets."""
    check_tensor(name, value)
    _same_device(name, value, targets.device)
    if integer == value.is_floating_point():
        raise TypeError(f"{name} must have {'an integer or bool' if integer else 'a float'} dtype, got {value.dtype}")
    try:
        return value.detach().expand(targets.shape).reshape(-1)
    except RuntimeError:
        raise ValueError(f"{name} must have a shape that broadcasts to targets {_shape(targets)}, got {_shape(value)}") from None


def check_positive(name: str, value: float | None) -> None:
    """A float > 0, or None."""
    if value is not None and not value > 0:
        raise ValueError(f"{name} must be > 0, got {value}")


def check_at_least(name: str, value: float, bound: float) -> None:
    """A float >= bound."""
    if not value >= bound:
        raise ValueError(f"{name} must be >= {bound}, got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """One of some strings."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_tensor(name: str, value: object) -> None:
    """A torch.Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def check_values(targets: Tensor, vocab_size: int, temperature: float | Tensor) -> None:
    """The value checks that need the data (a device sync on a GPU): targets of loss tokens, per-token temperatures."""
    outside = targets[(targets < 0) | (targets >= vocab_size)]
    if outside.numel():
        raise ValueError(f"targets must be in [0, {vocab_size}) or ignore_index, got {int(outside[0])}")
    if isinstance(temperature, Tensor) and not bool((temperature > 0).all()):
        raise ValueError(f"temperature must be > 0, got {float(temperature.min())}")


def row_backend(impl: str, device: torch.device) -> ModuleType:
    """The row operations for an implementation other than reference. Nothing falls back silently."""
    if impl == "torch" or (impl == "auto" and device.type != "cuda"):
        from aer_kernels import torch_rows

        return torch_rows
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET", "0") != "1":
        raise ValueError(f"impl='triton' must be given CUDA tensors (or run with TRITON_INTERPRET=1), got tensors on {device}")
    try:
        from aer_kernels import kernels
    except ImportError as error:
        raise ImportError("impl='triton' needs Triton: pip install triton, or use impl='torch'") from error
    return kernels


def _float_dtype(name: str, value: Tensor, impl: str) -> None:
    allowed = LOW_PRECISION if impl == "triton" else (*LOW_PRECISION, torch.float64)
    if value.dtype not in allowed:
        raise TypeError(
            f"{name} must have dtype {', '.join(str(d).removeprefix('torch.') for d in allowed)} for impl={impl!r}, got {value.dtype}"
        )


def _same_device(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{name} must be on {device} like the other tensors, got {value.device}")


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)
