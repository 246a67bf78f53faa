"""Gradient of the raw logits from saved row statistics: one program a row, one read and one write of each logit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aer_kernels.kernels.launch import on_device, row_launch, tempering_arguments
from aer_kernels.kernels.primitives import store_d_logits
from aer_kernels.statistics import RowStatistics, Tempering


@triton.jit
def _d_logits_kernel(
    raw_ptr,
    out_ptr,
    keep_ptr,
    targets_ptr,
    bias_ptr,
    temperature_ptr,
    floor_ptr,
    m_ptr,
    s_ptr,
    t_ptr,
    z_y_ptr,
    k_ptr,
    grad_logprobs_ptr,
    grad_entropy_ptr,
    num_columns,
    raw_stride,
    out_stride,
    v_start,
    temperature,
    softcap,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    PER_TOKEN_TEMPERATURE: tl.constexpr,
    FLOOR: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    HAS_GRAD_LOGPROBS: tl.constexpr,
    HAS_GRAD_ENTROPY: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)  # N * V exceeds 2^31
    if HAS_KEEP:  # noqa: SIM102 - the inner condition is only known on the device
        if tl.load(keep_ptr + n) == 0:
            for start in range(0, num_columns, BLOCK):
                offs = start + tl.arange(0, BLOCK)
                tl.store(out_ptr + n * out_stride + offs, tl.zeros((BLOCK,), out_ptr.dtype.element_ty), mask=offs < num_columns)
            return
    if PER_TOKEN_TEMPERATURE:
        temperature = tl.load(temperature_ptr + n)
    s = tl.load(s_ptr + n)
    log_s = tl.log(s)
    k, log_k = s, log_s
    if FLOOR == "entropy":
        k = tl.load(k_ptr + n)
        log_k = tl.log(k)
    store_d_logits(
        raw_ptr + n * raw_stride,
        out_ptr + n * out_stride,
        bias_ptr,
        tl.load(targets_ptr + n) - v_start,
        num_columns,
        temperature,
        softcap,
        tl.load(m_ptr + n),
        log_s,
        tl.load(z_y_ptr + n),
        tl.maximum(log_k - tl.load(t_ptr + n) / k, 0.0),
        tl.load(grad_logprobs_ptr + n) if HAS_GRAD_LOGPROBS else 0.0,
        tl.load(grad_entropy_ptr + n) if HAS_GRAD_ENTROPY else 0.0,
        log_k,
        tl.load(floor_ptr + n) if FLOOR != "none" else 0.0,
        BLOCK,
        HAS_BIAS,
        HAS_SOFTCAP,
        HAS_TEMPERATURE,
        FLOOR,
    )


def d_logits(
    raw: Tensor,
    out: Tensor,
    stats: RowStatistics,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    targets: Tensor,
    tempering: Tempering,
    v_start: int,
    keep: Tensor | None = None,
) -> None:
    """Write dL/d(raw) of (12)-(13) for a block of raw logits into out, which may be the same memory.

    raw, out: (n, Vb).   grad_*: (n,) or None for a term that is not there.   keep: (n,) bool; other rows are not read and become 0.
    """
    num_rows = targets.numel()
    if num_rows == 0:
        return
    # The interpreter truncates bf16 stores instead of rounding them (triton-lang/triton#11584).
    truncates = out.dtype == torch.bfloat16 and out.device.type == "cpu"
    stored = torch.zeros_like(out, dtype=torch.float32) if truncates else out
    with on_device(raw):
        _d_logits_kernel[(num_rows,)](
            raw,
            stored,
            raw if keep is None else keep.view(torch.uint8),
            targets,
            m_ptr=stats.maximum,
            s_ptr=stats.sum_exp,
            t_ptr=stats.sum_centred,
            z_y_ptr=stats.target_logit,
            k_ptr=stats.mass,
            grad_logprobs_ptr=raw if grad_logprobs is None else grad_logprobs,
            grad_entropy_ptr=raw if grad_entropy is None else grad_entropy,
            num_columns=raw.shape[1],
            raw_stride=raw.stride(0),
            out_stride=stored.stride(0),
            HAS_KEEP=keep is not None,
            HAS_GRAD_LOGPROBS=grad_logprobs is not None,
            HAS_GRAD_ENTROPY=grad_entropy is not None,
            **tempering_arguments(tempering, raw, v_start),
            **row_launch(raw.shape[1], tempering.floor is not None),
        )
    if truncates:
        out.copy_(stored)
