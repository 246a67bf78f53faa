"""Sums over the squared probabilities of complete rows, from their statistics: one program a row, one read of each logit."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from aer_kernels.kernels.launch import complete_arguments, on_device, row_launch
from aer_kernels.kernels.primitives import load_logits
from aer_kernels.statistics import RowStatistics, Tempering


@triton.jit
def _row_moments_kernel(
    raw_ptr,
    squares_ptr,
    surprise_ptr,
    bias_ptr,
    temperature_ptr,
    m_ptr,
    s_ptr,
    t_ptr,
    num_columns,
    raw_stride,
    temperature,
    softcap,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    PER_TOKEN_TEMPERATURE: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)  # N * V exceeds 2^31
    raw_ptr += n * raw_stride
    if PER_TOKEN_TEMPERATURE:
        temperature = tl.load(temperature_ptr + n)
    m, s = tl.load(m_ptr + n), tl.load(s_ptr + n)
    log_s = tl.log(s)
    entropy = tl.maximum(log_s - tl.load(t_ptr + n) / s, 0.0)
    squares, surprise = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, num_columns, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        mask = offs < num_columns
        z = load_logits(raw_ptr, bias_ptr, offs, mask, temperature, softcap, HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE, "none", 0.0)
        logp = (z - m) - log_s
        square = tl.exp(2.0 * logp)
        squares += square
        surprise += tl.where(square > 0, square * (logp + entropy), 0.0)
    tl.store(squares_ptr + n, tl.sum(squares, 0))
    tl.store(surprise_ptr + n, tl.sum(surprise, 0))


def row_moments(raw: Tensor, stats: RowStatistics, tempering: Tempering) -> tuple[Tensor, Tensor]:
    """sum p^2 and sum p^2 (log p + H) of each of complete rows of raw logits (n, V), (n,) each."""
    squares, surprise = raw.new_empty(raw.shape[0]), raw.new_empty(raw.shape[0])
    if raw.shape[0]:
        with on_device(raw):
            _row_moments_kernel[(raw.shape[0],)](
                raw,
                squares,
                surprise,
                m_ptr=stats.maximum,
                s_ptr=stats.sum_exp,
                t_ptr=stats.sum_centred,
                num_columns=raw.shape[1],
                raw_stride=raw.stride(0),
                **complete_arguments(tempering, raw),
                **row_launch(raw.shape[1]),
            )
    return squares, surprise
