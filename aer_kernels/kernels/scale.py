"""A tensor times a scalar that lives on the device, in fp32, rounded once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aer_kernels.kernels.launch import on_device

BLOCK = 8192


@triton.jit
def _scale_kernel(values_ptr, factor_ptr, out_ptr, num_values, BLOCK: tl.constexpr, ADD: tl.constexpr, IN_PLACE: tl.constexpr):
    factor = tl.load(factor_ptr).to(tl.float32)
    if IN_PLACE:  # noqa: SIM102 - the inner condition is only known on the device
        if factor == 1.0:
            return
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # V * D exceeds 2^31
    mask = offs < num_values
    found = tl.load(values_ptr + offs, mask=mask).to(tl.float32) * factor
    if ADD:
        found += tl.load(out_ptr + offs, mask=mask)
    tl.store(out_ptr + offs, found.to(out_ptr.dtype.element_ty), mask=mask)


def scale(values: Tensor, factor: Tensor, out: Tensor, *, add: bool) -> None:
    """out = values * factor (0-dim), or += with `add` (out fp32): all contiguous. A factor of 1 is free where out is values itself."""
    if values.numel() == 0:
        return
    # The interpreter truncates bf16 stores instead of rounding them (triton-lang/triton#11584).
    truncates = out.dtype == torch.bfloat16 and out.device.type == "cpu"
    stored = out.float() if truncates else out
    with on_device(values):
        _scale_kernel[(triton.cdiv(values.numel(), BLOCK),)](
            values, factor, stored, values.numel(), BLOCK=BLOCK, ADD=add, IN_PLACE=stored is values and not add, num_warps=8
        )
    if truncates:
        out.copy_(stored)
