"""From per-token terms to one number: the weights n_n and m_n of equation (9) of `aer_kernels.reference`."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from aer_kernels.validate import check_choice, check_positive, per_token

Aggregation = Literal["token_mean", "sequence_mean", "constant"]


class Weighting(NamedTuple):
    """n_n = weights * scale and m_n = entropy_ratio * scale. weights are O(1): the small factor is applied once, in fp32, at the end."""

    weights: Tensor
    """(N,), 0 at tokens that do not count"""
    scale: Tensor
    """0-dim"""
    entropy_ratio: Tensor
    """0-dim"""


def aggregate(
    aggregation: str,
    targets: Tensor,
    keep: Tensor,
    sequence_ids: Tensor | None,
    normalizer: float | Tensor | None,
    entropy_normalizer: float | Tensor | None,
    entropy_coef: float | Tensor,
    dtype: torch.dtype,
) -> Weighting:
    """Weights of the tokens of `targets` at which keep (N,) holds; arguments as in `fused_policy_loss`. No device sync."""
    check_choice("aggregation", aggregation, get_args(Aggregation))
    given = _denominator("normalizer", normalizer, targets, dtype)
    entropy_given = _denominator("entropy_normalizer", entropy_normalizer, targets, dtype)
    has_bonus = isinstance(entropy_coef, Tensor) or entropy_coef != 0
    if (
        has_bonus and aggregation != "token_mean" and given is not None and entropy_given is None
    ):  # a part of an update has its tokens alone
        what = f"normalizer, entropy_coef and aggregation={aggregation!r}: the loss tokens of the whole update"
        raise ValueError(f"entropy_normalizer must be given with {what}; got None")
    tokens = keep.sum().clamp(min=1).to(dtype)
    weights = keep.to(dtype)
    if sequence_ids is not None and aggregation != "sequence_mean":
        raise ValueError(f"sequence_ids must be None unless aggregation is 'sequence_mean', got a tensor with {aggregation!r}")
    if aggregation == "token_mean":
        denominator = tokens if given is None else given
        entropy_denominator = denominator if entropy_given is None else entropy_given
    elif aggregation == "constant":
        if given is None:
            raise ValueError("normalizer must be given for aggregation='constant', got None")
        denominator = given
        entropy_denominator = tokens if entropy_given is None else entropy_given
    else:
        lengths, ids = _sequence_lengths(targets, keep, sequence_ids, dtype)
        sequences = (lengths > 0).sum().clamp(min=1).to(dtype)
        mean_length = tokens / sequences
        weights = torch.where(keep, mean_length / lengths[ids], 0.0)
        denominator = mean_length * (sequences if given is None else given)
        entropy_denominator = tokens if entropy_given is None else entropy_given
    return Weighting(weights, 1.0 / denominator, denominator / entropy_denominator)


def _sequence_lengths(targets: Tensor, keep: Tensor, sequence_ids: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Loss tokens of each sequence, and the sequence of each token."""
    if sequence_ids is not None:
        ids, num_sequences = per_token("sequence_ids", sequence_ids, targets, integer=True).long(), targets.numel()
    elif targets.ndim >= 2:
        num_sequences = targets[..., 0].numel()
        ids = torch.arange(targets.numel(), device=targets.device) // targets.shape[-1]
    else:
        raise ValueError("sequence_ids must be given for aggregation='sequence_mean' when targets has one dimension, got None")
    return torch.zeros(num_sequences, dtype=dtype, device=targets.device).index_add_(0, ids, keep.to(dtype)), ids


def _denominator(name: str, value: float | Tensor | None, targets: Tensor, dtype: torch.dtype) -> Tensor | None:
    if value is None:
        return None
    if isinstance(value, Tensor):
        if value.ndim != 0:
            raise ValueError(f"{name} must be a float or a 0-dim tensor, got shape {tuple(value.shape)}")
        return value.detach().to(device=targets.device, dtype=dtype)
    check_positive(name, value)
    return torch.full((), float(value), dtype=dtype, device=targets.device)
