"""Checks of user input, from metadata alone (no device sync), phrased `<name> must <rule>, got <value>`."""

from __future__ import annotations

import os

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "triton", "torch", "reference")
LOW_PRECISION = (torch.float32, torch.bfloat16, torch.float16)


def check_head(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, impl: str) -> None:
    """Shapes, dtypes and devices of a linear head and its targets."""
    check_tensor("hidden", hidden)
    check_tensor("weight", weight)
    check_tensor("targets", targets)
    if hasattr(hidden, "device_mesh"):
        raise TypeError("hidden must be a plain tensor, got a DTensor: pass hidden.to_local()")
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


def check_lora(hidden: Tensor, weight: Tensor, lora_a: Tensor | None, lora_b: Tensor | None) -> None:
    """Shapes and dtypes of a low-rank update."""
    if (lora_a is None) != (lora_b is None):
        raise ValueError(f"lora_a and lora_b must be given together, got {_given(lora_a)} and {_given(lora_b)}")
    if lora_a is None or lora_b is None:
        return
    check_tensor("lora_a", lora_a)
    check_tensor("lora_b", lora_b)
    if lora_a.ndim != 2 or lora_a.shape[1] != hidden.shape[-1]:
        raise ValueError(f"lora_a must have shape (r, {hidden.shape[-1]}) to match hidden {_shape(hidden)}, got {_shape(lora_a)}")
    if tuple(lora_b.shape) != (weight.shape[0], lora_a.shape[0]):
        raise ValueError(f"lora_b must have shape ({weight.shape[0]}, {lora_a.shape[0]}) to match weight and lora_a, got {_shape(lora_b)}")
    for name, value in (("lora_a", lora_a), ("lora_b", lora_b)):
        _same_device(name, value, hidden.device)
        if value.dtype != hidden.dtype:
            raise TypeError(f"{name} must have the dtype of hidden ({hidden.dtype}), got {value.dtype}")


def check_group(vocab_group: object, vocab_start: int | None, impl: str) -> None:
    """Options of a vocabulary that is split over ranks."""
    if vocab_group is None and vocab_start is not None:
        raise ValueError(f"vocab_start must be None without a vocab_group, got {vocab_start}")
    if vocab_group is not None and impl == "reference":
        raise ValueError("impl must be 'auto', 'triton' or 'torch' with a vocab_group, got 'reference'")
    if vocab_start is not None and vocab_start < 0:
        raise ValueError(f"vocab_start must be >= 0, got {vocab_start}")


def check_main_grad(main_grad: Tensor | None, weight: Tensor) -> None:
    """A buffer that grad_weight can be added to."""
    if main_grad is None:
        return
    check_tensor("main_grad", main_grad)
    if main_grad.shape != weight.shape:
        raise ValueError(f"main_grad must have the shape of weight {_shape(weight)}, got {_shape(main_grad)}")
    if main_grad.dtype != torch.promote_types(weight.dtype, torch.float32):
        raise TypeError(f"main_grad must be float32 (float64 for float64 weights), got {main_grad.dtype}")
    _same_device("main_grad", main_grad, weight.device)


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
    """Check that a value is a torch.Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def check_mask(mask: Tensor) -> None:
    """A mask of numbers holds 0 and 1 (a device sync on a GPU)."""
    other = mask[(mask != 0) & (mask != 1)]
    if other.numel():
        raise ValueError(f"loss_mask must hold 0 and 1, got {float(other[0]):g}")


def check_number_or_tensor(name: str, value: object) -> None:
    """Check that a value is a number, or a torch.Tensor."""
    if not isinstance(value, Tensor | float | int):
        raise TypeError(f"{name} must be a float or a torch.Tensor, got {type(value).__name__}")


def check_values(targets: Tensor, vocab_size: int | None, temperature: Tensor | None) -> None:
    """The value checks that need the data (a device sync on a GPU): targets of loss tokens, per-token temperatures.

    vocab_size None: not known, as this rank holds a shard.
    """
    outside = targets[(targets < 0) | (targets >= vocab_size)] if vocab_size is not None else targets[targets < 0]
    if outside.numel():
        bound = "V" if vocab_size is None else vocab_size
        raise ValueError(f"targets must be in [0, {bound}) or ignore_index, got {int(outside[0])}")
    if temperature is not None and not bool((temperature > 0).all()):
        raise ValueError(f"temperature must be > 0, got {float(temperature.min())}")


def check_impl(impl: str, device: torch.device) -> None:
    """An implementation that works on this device."""
    if impl == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET", "0") != "1":
        raise ValueError(f"impl='triton' must be given CUDA tensors (or run with TRITON_INTERPRET=1), got tensors on {device}")


def _float_dtype(name: str, value: Tensor, impl: str) -> None:
    allowed = LOW_PRECISION if impl == "triton" else (*LOW_PRECISION, torch.float64)
    if value.dtype not in allowed:
        raise TypeError(
            f"{name} must have dtype {', '.join(str(d).removeprefix('torch.') for d in allowed)} for impl={impl!r}, got {value.dtype}"
        )


def _same_device(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{name} must be on {device} like the other tensors, got {value.device}")


def _given(value: Tensor | None) -> str:
    return "None" if value is None else "a tensor"


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)
