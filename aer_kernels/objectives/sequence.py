"""Sequence-level policy objective (GSPO) on per-token log-probs, differentiable through `fused_logprobs`.

    s_i   = exp( mean over the loss tokens of response i of (logprobs - old_logprobs) )
    s_it  = sg[s_i] exp(logprobs_it - sg[logprobs_it])
    loss  = -1 / normalizer * sum_i 1 / tokens_i * sum_t min(s_it A_it, clip(s_it, 1 - clip_low, 1 + clip_high) A_it)

With one advantage for all tokens of a response that is GSPO, value and gradient.

Source: arXiv:2507.18071, equations 5-7, and its GSPO-token for advantages that differ within a response.
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
        advantages: (B,) float, one for each response, or (B, T), one for each token.
        loss_mask: (B, T) bool or 0/1.
        old_logprobs: (B, T) nats; None means strictly on-policy (ratio 1, with gradient).
        clip_low: lower bound of the sequence ratio is 1 - clip_low, >= 0 (much tighter than a token-level one).
        clip_high: upper bound of the sequence ratio is 1 + clip_high, >= 0.
        normalizer: responses over all micro-batches and ranks, > 0. None: the responses of this call with a loss token.
    Returns:
        The loss (0-dim), and the metrics clip_frac, ratio_mean and ratio_max over responses (0-dim).
    """
    if logprobs.ndim != 2:
        raise ValueError(f"logprobs must have shape (B, T), got {tuple(logprobs.shape)}")
    if advantages.shape not in (logprobs.shape[:1], logprobs.shape):
        raise ValueError(f"advantages must have shape ({logprobs.shape[0]},) or {tuple(logprobs.shape)}, got {tuple(advantages.shape)}")
    advantages = advantages if advantages.ndim == 2 else advantages.unsqueeze(1)
    check_at_least("clip_low", clip_low, 0)
    check_at_least("clip_high", clip_high, 0)
    if not isinstance(normalizer, Tensor):
        check_positive("normalizer", normalizer)
    mask = per_token("loss_mask", loss_mask, logprobs, integer=not loss_mask.is_floating_point()).view(logprobs.shape) != 0
    old = logprobs.detach() if old_logprobs is None else per_token("old_logprobs", old_logprobs, logprobs).view(logprobs.shape)
    lengths = mask.sum(1)
    present = lengths > 0
    log_ratio = torch.where(mask, logprobs - old, 0.0).sum(1).detach() / lengths.clamp(min=1)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    moving = mask & (log_ratio.abs() <= MAX_LOG_RATIO).unsqueeze(1)
    token_ratio = ratio.unsqueeze(1) * torch.where(moving, logprobs - logprobs.detach(), 0.0).exp()
    clipped = token_ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate = (torch.minimum(token_ratio * advantages, clipped * advantages) * mask).sum(1) / lengths.clamp(min=1)
    count = present.sum().clamp(min=1)
    with torch.no_grad():
        high, low = ratio > 1.0 + clip_high, ratio < 1.0 - clip_low
        outside = ((high.unsqueeze(1) & (advantages > 0)) | (low.unsqueeze(1) & (advantages < 0))) & mask
        metrics = {
            "clip_frac": (outside.sum(1) / lengths.clamp(min=1)).sum() / count,
            "ratio_mean": (ratio * present).sum() / count,
            "ratio_max": (ratio * present).amax() if ratio.numel() else ratio.sum(),
        }
    return -surrogate.sum() / (count if normalizer is None else normalizer), metrics
