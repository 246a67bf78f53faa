"""Statistics, policy-loss coefficient and gradient of complete rows of logits in one launch: one program a row.

The row is read twice; the second time it comes from cache unless the vocabulary is larger than that.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from aer_kernels.kernels.launch import on_device, row_launch, tempering_arguments
from aer_kernels.kernels.primitives import row_statistics, store_d_logits
from aer_kernels.objectives.policy import PolicyInputs, Surrogate
from aer_kernels.reference import MAX_LOG_RATIO
from aer_kernels.statistics import RowStatistics, Tempering


@triton.jit
def policy_slope(logprob, old_logprob, advantage, low, high, dual_clip, max_log_ratio, CISPO: tl.constexpr, HAS_DUAL_CLIP: tl.constexpr):
    """ds/dlogprob of (15) for one token; low and high are the bounds of the ratio."""
    log_ratio = logprob - old_logprob
    ratio = tl.exp(tl.minimum(tl.maximum(log_ratio, -max_log_ratio), max_log_ratio))
    if CISPO:
        return tl.minimum(tl.maximum(ratio, low), high) * advantage
    clipped = ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low)) | (tl.abs(log_ratio) > max_log_ratio)
    if HAS_DUAL_CLIP:
        clipped = clipped | ((advantage < 0) & (ratio > dual_clip))
    return tl.where(clipped, 0.0, ratio * advantage)


@triton.jit
def divergence_slope(distance, max_log_ratio, KL: tl.constexpr):
    """dk/dlogprob of (15) for one token; distance is logprob - ref_logprob."""
    if KL == "k1":
        slope = 1.0
    elif KL == "abs_k1":
        slope = tl.where(distance > 0, 1.0, tl.where(distance < 0, -1.0, 0.0))
    elif KL == "k2":
        slope = distance
    else:
        slope = 1.0 - tl.exp(tl.minimum(-distance, max_log_ratio))
    return tl.where(tl.abs(distance) > max_log_ratio, 0.0, slope)


@triton.jit
def rollout_weight(logprob, rollout_logprob, cap, max_log_ratio):
    """w of (7) for one token."""
    log_ratio = tl.minimum(tl.maximum(logprob - rollout_logprob, -max_log_ratio), max_log_ratio)
    return tl.minimum(tl.exp(log_ratio), cap)


@triton.jit
def _policy_rows_kernel(
    raw_ptr,
    out_ptr,
    targets_ptr,
    bias_ptr,
    temperature_ptr,
    floor_ptr,
    advantages_ptr,
    weights_ptr,
    entropy_weights_ptr,
    old_logprobs_ptr,
    ref_logprobs_ptr,
    kl_coef_ptr,
    rollout_logprobs_ptr,
    m_ptr,
    s_ptr,
    t_ptr,
    z_y_ptr,
    k_ptr,
    slopes_ptr,
    num_columns,
    raw_stride,
    out_stride,
    v_start,
    temperature,
    softcap,
    low,
    high,
    dual_clip,
    rollout_cap,
    max_log_ratio,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
    PER_TOKEN_TEMPERATURE: tl.constexpr,
    FLOOR: tl.constexpr,
    CISPO: tl.constexpr,
    HAS_DUAL_CLIP: tl.constexpr,
    HAS_OLD_LOGPROBS: tl.constexpr,
    HAS_KL: tl.constexpr,
    KL: tl.constexpr,
    HAS_ROLLOUT_LOGPROBS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)  # N * V exceeds 2^31
    raw_ptr += n * raw_stride
    target = tl.load(targets_ptr + n) - v_start
    if PER_TOKEN_TEMPERATURE:
        temperature = tl.load(temperature_ptr + n)
    nothing, zero = tl.full((), float("-inf"), tl.float32), tl.full((), 0.0, tl.float32)
    unseen = tl.full((), float("nan"), tl.float32)
    floor = tl.load(floor_ptr + n) if FLOOR != "none" else 0.0
    m, s, t, z_y, k = row_statistics(
        raw_ptr,
        bias_ptr,
        target,
        num_columns,
        temperature,
        softcap,
        nothing,
        zero,
        zero,
        unseen,
        zero,
        floor,
        BLOCK,
        HAS_BIAS,
        HAS_SOFTCAP,
        HAS_TEMPERATURE,
        FLOOR,
    )
    log_s = tl.log(s)
    log_k = tl.log(k) if FLOOR == "entropy" else log_s
    logprob = (z_y - m) - log_s
    entropy = tl.maximum(log_k - t / k, 0.0)

    old_logprob = tl.load(old_logprobs_ptr + n) if HAS_OLD_LOGPROBS else logprob
    advantage = tl.load(advantages_ptr + n)
    if HAS_ROLLOUT_LOGPROBS:
        advantage *= rollout_weight(logprob, tl.load(rollout_logprobs_ptr + n), rollout_cap, max_log_ratio)
    grad = -policy_slope(logprob, old_logprob, advantage, low, high, dual_clip, max_log_ratio, CISPO, HAS_DUAL_CLIP)
    if HAS_KL:
        grad += tl.load(kl_coef_ptr + n) * divergence_slope(logprob - tl.load(ref_logprobs_ptr + n), max_log_ratio, KL)
    grad *= tl.load(weights_ptr + n)
    tl.store(m_ptr + n, m)
    tl.store(s_ptr + n, s)
    tl.store(t_ptr + n, t)
    tl.store(z_y_ptr + n, z_y)
    if FLOOR == "entropy":
        tl.store(k_ptr + n, k)
    tl.store(slopes_ptr + n, grad)
    store_d_logits(
        raw_ptr,
        out_ptr + n * out_stride,
        bias_ptr,
        target,
        num_columns,
        temperature,
        softcap,
        m,
        log_s,
        z_y,
        entropy,
        grad,
        -tl.load(entropy_weights_ptr + n),
        log_k,
        floor,
        BLOCK,
        HAS_BIAS,
        HAS_SOFTCAP,
        HAS_TEMPERATURE,
        FLOOR,
    )


def policy_rows(
    raw: Tensor,
    out: Tensor,
    stats: RowStatistics,
    slopes: Tensor,
    targets: Tensor,
    tempering: Tempering,
    inputs: PolicyInputs,
    surrogate: Surrogate,
) -> None:
    """Statistics of complete rows (n, V) into stats, d(loss)/d(logprobs) (n,) into slopes, and the policy-loss gradient into out.

    out may be the same memory as raw.
    """
    num_rows = targets.numel()
    if num_rows == 0:
        return
    has_kl = inputs.ref_logprobs is not None and inputs.kl_coef is not None
    with on_device(raw):
        _policy_rows_kernel[(num_rows,)](
            raw,
            out,
            targets,
            advantages_ptr=inputs.advantages,
            weights_ptr=inputs.weights,
            entropy_weights_ptr=inputs.entropy_weights,
            old_logprobs_ptr=raw if inputs.old_logprobs is None else inputs.old_logprobs,
            ref_logprobs_ptr=inputs.ref_logprobs if has_kl else raw,
            kl_coef_ptr=inputs.kl_coef if has_kl else raw,
            rollout_logprobs_ptr=raw if inputs.rollout_logprobs is None else inputs.rollout_logprobs,
            m_ptr=stats.maximum,
            s_ptr=stats.sum_exp,
            t_ptr=stats.sum_centred,
            z_y_ptr=stats.target_logit,
            k_ptr=stats.mass,
            slopes_ptr=slopes,
            num_columns=raw.shape[1],
            raw_stride=raw.stride(0),
            out_stride=out.stride(0),
            low=1.0 - surrogate.clip_low,
            high=1.0 + surrogate.clip_high,
            dual_clip=float(surrogate.dual_clip or 0.0),
            rollout_cap=float(surrogate.rollout_cap),
            max_log_ratio=MAX_LOG_RATIO,
            CISPO=surrogate.kind == "cispo",
            HAS_DUAL_CLIP=surrogate.dual_clip is not None,
            HAS_OLD_LOGPROBS=inputs.old_logprobs is not None,
            HAS_KL=has_kl,
            KL=surrogate.kl,
            HAS_ROLLOUT_LOGPROBS=inputs.rollout_logprobs is not None,
            **tempering_arguments(tempering, raw, 0),
            **row_launch(raw.shape[1], tempering.floor is not None),
        )
