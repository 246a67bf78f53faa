"""The logit from which on a row's top-p or top-k set begins: one program a row, by bisection over the floats, without sorting."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from aer_kernels.kernels.launch import complete_arguments, on_device, row_launch
from aer_kernels.kernels.primitives import finite, load_logits, moved
from aer_kernels.statistics import Tempering


@triton.jit
def from_key(key):
    """The float of an integer; larger integers give larger floats."""
    bits = key.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def kept_mass(
    raw_ptr,
    bias_ptr,
    num_columns,
    temperature,
    softcap,
    m,
    threshold,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Sum of exp(z - m) over the logits from the threshold on, or their number; the smallest of these; and the largest logit below."""
    total = tl.zeros((BLOCK,), tl.float32)
    last = tl.full((BLOCK,), float("inf"), tl.float32)
    below = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, num_columns, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        mask = offs < num_columns
        z = load_logits(raw_ptr, bias_ptr, offs, mask, temperature, softcap, HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE, "none", 0.0)
        kept = mask & (z >= threshold)
        total += tl.where(kept, 1.0 if COUNT else tl.exp(z - m), 0.0)
        last = tl.minimum(last, tl.where(kept, z, float("inf")))
        below = tl.maximum(below, tl.where(kept, float("-inf"), z))
    return tl.sum(total, 0), tl.min(last, 0), tl.max(below, 0)


@triton.jit
def _row_floors_kernel(
    raw_ptr,
    out_ptr,
    bias_ptr,
    temperature_ptr,
    num_columns,
    raw_stride,
    temperature,
    softcap,
    wanted,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    PER_TOKEN_TEMPERATURE: tl.constexpr,
    COUNT: tl.constexpr,
    CROSSING: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)  # N * V exceeds 2^31
    raw_ptr += n * raw_stride
    if PER_TOKEN_TEMPERATURE:
        temperature = tl.load(temperature_ptr + n)
    m, s = tl.full((), float("-inf"), tl.float32), tl.full((), 0.0, tl.float32)
    for start in range(0, num_columns, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        mask = offs < num_columns
        z = load_logits(raw_ptr, bias_ptr, offs, mask, temperature, softcap, HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE, "none", 0.0)
        new_m = tl.maximum(m, tl.max(z, 0))
        shift = finite(new_m)
        s, _unused = moved(m, s, s, shift)
        s += tl.sum(tl.exp(z - shift), 0)
        m = new_m
    target = wanted if COUNT else wanted * s
    # the largest threshold whose set has the wanted mass: between the keys of -inf, which keeps all, and of NaN, which keeps none
    low, high = tl.full((), -2139095041, tl.int64), tl.full((), 2139095041, tl.int64)
    for _bisection in range(33):
        if high - low > 1:
            middle = low + (high - low) // 2
            mass, _last, _below = kept_mass(
                raw_ptr,
                bias_ptr,
                num_columns,
                temperature,
                softcap,
                m,
                from_key(middle),
                BLOCK,
                HAS_BIAS,
                HAS_SOFTCAP,
                HAS_TEMPERATURE,
                COUNT,
            )
            low, high = tl.where(mass >= target, middle, low), tl.where(mass >= target, high, middle)
    # from the next key on the mass is not reached
    threshold = from_key(low) if CROSSING else tl.minimum(from_key(high), m)
    _reached, last, below = kept_mass(
        raw_ptr, bias_ptr, num_columns, temperature, softcap, m, threshold, BLOCK, HAS_BIAS, HAS_SOFTCAP, HAS_TEMPERATURE, COUNT
    )
    tl.store(out_ptr + n, tl.where(below == float("-inf"), below, last + 0.5 * (below - last)))


def row_floors(raw: Tensor, tempering: Tempering, wanted: float, *, count: bool, crossing: bool = True) -> Tensor:
    """Floor of each of complete rows of raw logits (n, V): half way from the last logit that is kept to the next, -inf where all are kept.

    wanted: the share of the probability that the kept logits must reach or, with `count`, their number.
    crossing: whether the logit that reaches it is kept; the largest always is.
    """
    out = raw.new_empty(raw.shape[0])
    if raw.shape[0] == 0:
        return out
    with on_device(raw):
        _row_floors_kernel[(raw.shape[0],)](
            raw,
            out,
            num_columns=raw.shape[1],
            raw_stride=raw.stride(0),
            wanted=float(wanted),
            COUNT=count,
            CROSSING=crossing,
            **complete_arguments(tempering, raw),
            **row_launch(raw.shape[1], has_floor=True),
        )
    return out
