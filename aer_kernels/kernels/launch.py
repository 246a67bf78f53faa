"""Launch parameters of the row kernels as a pure function, and the arguments that all of them share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from aer_kernels.statistics import Logits


def row_launch(num_columns: int) -> dict[str, int]:
    """Block of columns and warps of a program that walks over one row."""
    block = min(triton.next_power_of_2(max(num_columns, 1)), 8192)
    return {"BLOCK": block, "num_warps": 16 if block >= 8192 else 8 if block >= 2048 else 4}


def logits_arguments(logits: Logits, anchor: Tensor, v_start: int) -> dict[str, Any]:
    """Arguments that say how raw products become logits; anchor stands in for pointers that are not used."""
    per_token = isinstance(logits.temperature, Tensor)
    return {
        "bias_ptr": anchor if logits.bias is None else logits.bias[v_start:].contiguous(),
        "temperature_ptr": logits.temperature if per_token else anchor,
        "v_start": v_start,
        "temperature": 1.0 if per_token else float(logits.temperature),
        "softcap": 1.0 if logits.softcap is None else float(logits.softcap),
        "HAS_BIAS": logits.bias is not None,
        "HAS_SOFTCAP": logits.softcap is not None,
        "HAS_TEMPERATURE": per_token or logits.temperature != 1.0,
        "PER_TOKEN_TEMPERATURE": per_token,
    }


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's GPU current, as a Triton launch needs."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()
