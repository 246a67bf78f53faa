"""Running softmax statistics of rows of logits: one program a row, one read of each logit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aer_kernels.kernels.launch import on_device, row_launch, tempering_arguments
from aer_kernels.kernels.primitives import row_statistics
from aer_kernels.statistics import RowStatistics, Tempering


@triton.jit
def _row_stats_kernel(
    raw_ptr,
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
    num_columns,
    raw_stride,
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
):
    n = tl.program_id(0).to(tl.int64)  # N * V exceeds 2^31
    if HAS_KEEP:  # noqa: SIM102 - the inner condition is only known on the device
        if tl.load(keep_ptr + n) == 0:
            return
    if PER_TOKEN_TEMPERATURE:
        temperature = tl.load(temperature_ptr + n)
    m, s, t, z_y, k = row_statistics(
        raw_ptr + n * raw_stride,
        bias_ptr,
        tl.load(targets_ptr + n) - v_start,
        num_columns,
        temperature,
        softcap,
        tl.load(m_ptr + n),
        tl.load(s_ptr + n),
        tl.load(t_ptr + n),
        tl.load(z_y_ptr + n),
        tl.load(k_ptr + n) if FLOOR == "entropy" else 0.0,
        tl.load(floor_ptr + n) if FLOOR != "none" else 0.0,
        BLOCK,
        HAS_BIAS,
        HAS_SOFTCAP,
        HAS_TEMPERATURE,
        FLOOR,
    )
    if FLOOR == "entropy":
        tl.store(k_ptr + n, k)
    tl.store(m_ptr + n, m)
    tl.store(s_ptr + n, s)
    tl.store(t_ptr + n, t)
    tl.store(z_y_ptr + n, z_y)


def update_statistics(
    raw: Tensor, stats: RowStatistics, targets: Tensor, tempering: Tempering, v_start: int, keep: Tensor | None = None
) -> None:
    """Fold a block of raw logits, columns v_start.. of the vocabulary, into the running statistics of its rows (16).

    raw: (n, Vb).   targets: (n,) in the whole vocabulary.   keep: (n,) bool; other rows are neither read nor changed.
    """
    num_rows = targets.numel()
    if num_rows == 0:
        return
    with on_device(raw):
        _row_stats_kernel[(num_rows,)](
            raw,
            raw if keep is None else keep.view(torch.uint8),
            targets,
            m_ptr=stats.maximum,
            s_ptr=stats.sum_exp,
            t_ptr=stats.sum_centred,
            z_y_ptr=stats.target_logit,
            k_ptr=stats.mass,
            num_columns=raw.shape[1],
            raw_stride=raw.stride(0),
            HAS_KEEP=keep is not None,
            **tempering_arguments(tempering, raw, v_start),
            **row_launch(raw.shape[1], tempering.floor is not None),
        )
