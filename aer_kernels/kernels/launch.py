"""Launch parameters of the row kernels as a pure function, and the arguments that all of them share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from aer_kernels.statistics import Tempering

WARP_SIZE = 64 if torch.version.hip else 32


def row_launch(num_columns: int, has_floor: bool = False, warp_size: int = WARP_SIZE) -> dict[str, int]:
    """Block of columns and warps of a program that walks over one row.

    With a floor a thread has eight columns, or registers spill; without, it has sixteen where a warp is 32 wide.
    """
    widest, threads = (4096, 512) if has_floor else (8192, 16 * warp_size)
    block = min(triton.next_power_of_2(max(num_columns, 1)), widest)
    return {"BLOCK": block, "num_warps": threads // warp_size if block >= widest else 8 if block >= 2048 else 4}


def tempering_arguments(tempering: Tempering, anchor: Tensor, v_start: int) -> dict[str, Any]:
    """Arguments that say how raw products become logits, and which count; anchor stands in for pointers that are not used."""
    return complete_arguments(tempering, anchor, v_start) | {
        "v_start": v_start,
        "floor_ptr": anchor if tempering.floor is None else tempering.floor,
        "FLOOR": "none" if tempering.floor is None else "entropy" if tempering.entropy_alone else "all",
    }


def complete_arguments(tempering: Tempering, anchor: Tensor, v_start: int = 0) -> dict[str, Any]:
    """The same for kernels of complete rows without a floor."""
    per_token = isinstance(tempering.temperature, Tensor)
    return {
        "bias_ptr": anchor if tempering.bias is None else tempering.bias[v_start:].contiguous(),
        "temperature_ptr": tempering.temperature if per_token else anchor,
        "temperature": 1.0 if per_token else float(tempering.temperature),
        "softcap": 1.0 if tempering.softcap is None else float(tempering.softcap),
        "HAS_BIAS": tempering.bias is not None,
        "HAS_SOFTCAP": tempering.softcap is not None,
        "HAS_TEMPERATURE": per_token or tempering.temperature != 1.0,
        "PER_TOKEN_TEMPERATURE": per_token,
    }


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's GPU current, as a Triton launch needs."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()
