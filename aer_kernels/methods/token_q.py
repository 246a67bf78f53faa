"""The policy term of ETPO, for whoever has a Q-value of every token of the vocabulary: the policy is fitted to the Boltzmann policy of Q /
beta.

    loss = mean over tokens of  sum_v p_v (beta log p_v - Q_v)  =  mean of  - beta H - E_p[Q],   p = softmax(logits)

Its gradient at the logits is beta p (log p + H) - p (Q - E_p[Q]); none reaches Q. A uniform Q changes nothing.

Source: arXiv:2402.06700, paper form; beta is 0.01 there. The release (morning9393/ETPO d3d7d9c) is not followed: its active loss averages
over the vocabulary uniformly, with Q detached, so that Q has no gradient at all. Q itself, its target network and its backups are the
caller's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_q_loss(logits: Tensor, q: Tensor, *, loss_mask: Tensor, beta: float = 0.01, normalizer: float | Tensor | None = None) -> Tensor:
    """Return the loss, 0-dim, differentiable in the logits. It holds a few tensors of the size of the logits.

    Args:
        logits: (..., V) float.
        q: (..., V) float, detached.
        loss_mask: (...) bool or 0/1: the tokens that are trained.
        beta: nats are worth this much, >= 0.
        normalizer: > 0: tokens over all micro-batches and ranks. None: those of this call.
    Raises:
        ValueError: shapes differ, or beta is negative.
    """
    if q.shape != logits.shape or loss_mask.shape != logits.shape[:-1]:
        shapes = f"{tuple(logits.shape)}, {tuple(q.shape)} and {tuple(loss_mask.shape)}"
        raise ValueError(f"logits, q and loss_mask must have shapes (..., V), (..., V) and (...), got {shapes}")
    if beta < 0:
        raise ValueError(f"beta must be >= 0, got {beta}")
    mask = loss_mask != 0
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logp = logits[mask].to(dtype).log_softmax(-1)
    finite = logp.masked_fill(logp.isinf(), 0.0)  # a logit of -inf has probability 0, and neither entropy nor Q
    regret = (logp.exp() * (beta * finite - q[mask].detach().to(dtype))).sum()
    return regret / (mask.sum().clamp(min=1) if normalizer is None else normalizer)
