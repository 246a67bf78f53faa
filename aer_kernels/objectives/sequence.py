"""Sequence-level policy objective (GSPO) on per-token log-probs, differentiable through `fused_logprobs`.

    s_i  = exp( mean over the loss tokens of response i of (logprobs - old_logprobs) )
    loss = -1 / normalizer * sum_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)

Source: arXiv:2507.18071, equations 5-7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aer_kernels.reference import MAX_LOG_RATIO
from aer_kernels.validate import check_at_least, check_positive, per_token


def gspo_loss(
    logprobs: Tensor,
    *,
    advantages: Tensor,
    loss_mask: Tensor,
    old_logprobs: Tensor | None = None,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    normalizer: float | Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The GSPO loss of a batch of responses, one a row.

    Args:
        logprobs: (B, T) fp32, nats, of the current policy; carries the gradient.
        advantages: (B,) float, one for each response.
        loss_mask: (B, T) bool or 0/1.
        old_logprobs: (B, T) nats; None means strictly on-policy (ratio 1, with gradient).
        clip_low, clip_high: >= 0, bounds of the sequence ratio (much tighter than token-level ones).
        normalizer: > 0: responses over all micro-batches and ranks; None: the responses of this call with a loss token.
    Returns:
        loss (0-dim) and metrics: clip_frac, ratio_mean, ratio_max over responses (0-dim).
    """
    if logprobs.ndim != 2:
        raise ValueError(f"logprobs must have shape (B, T), got {tuple(logprobs.shape)}")
    if advantages.shape != logprobs.shape[:1]:
        raise ValueError(f"advantages must have shape ({logprobs.shape[0]},), got {tuple(advantages.shape)}")
    check_at_least("clip_low", clip_low, 0)
    check_at_least("clip_high", clip_high, 0)
    if not isinstance(normalizer, Tensor):
        check_positive("normalizer", normalizer)
    mask = per_token("loss_mask", loss_mask, logprobs, integer=not loss_mask.is_floating_point()).view(logprobs.shape) != 0
    old = logprobs.detach() if old_logprobs is None else per_token("old_logprobs", old_logprobs, logprobs).view(logprobs.shape)
    lengths = mask.sum(1)
    present = lengths > 0
    log_ratio = torch.where(mask, logprobs - old, 0.0).sum(1) / lengths.clamp(min=1)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages) * present
    count = present.sum().clamp(min=1)
    with torch.no_grad():
        outside = ((ratio > 1.0 + clip_high) & (advantages > 0)) | ((ratio < 1.0 - clip_low) & (advantages < 0))
        metrics = {
            "clip_frac": (outside & present).sum() / count,
            "ratio_mean": (ratio * present).sum() / count,
            "ratio_max": (ratio * present).amax() if ratio.numel() else ratio.sum(),
        }
    return -surrogate.sum() / (count if normalizer is None else normalizer), metrics
