"""Row operations on blocks of raw logits in plain PyTorch: the same three functions as `aer_kernels.kernels`, for any device.

Rows are walked in small groups that stay in the processor's cache, so beside the block only two scratch groups exist.
Equation numbers are those of `aer_kernels.reference`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aer_kernels.gemm import statistics_dtype
from aer_kernels.objectives.policy import ObjectiveConfig, PolicyInputs, policy_tokens
from aer_kernels.plan import SCRATCH_ELEMENTS
from aer_kernels.statistics import Logits, RowStatistics, target_d_logits

WRITES_IN_PLACE = False
"""Whether low-precision d_logits can overwrite the fp32 block they are made from."""

LOG_ZERO = -1e4
"""Stands in for a log-prob of -inf where it is multiplied by its probability, which is exactly 0 there."""


def update_statistics(
    raw: Tensor, stats: RowStatistics, targets: Tensor, logits: Logits, v_start: int, rows: Tensor | None = None
) -> None:
    """Fold a block of raw logits (n, Vb), columns v_start.. of the vocabulary, into the running statistics of its rows (16)."""
    for g in _groups(stats.maximum.numel(), raw.shape[1]):
        z = _tempered(_take(raw, rows, g), logits, g, v_start)
        _gather_targets(z, stats.target_logit[g], targets[g], v_start)
        old_max = stats.maximum[g]
        new_max = torch.maximum(old_max, z.amax(1))
        shift = new_max.masked_fill(new_max == -torch.inf, 0.0)  # all -inf so far: any finite shift gives exp(-inf) = 0
        z.sub_(shift.unsqueeze(1))
        p = z.exp()
        z.clamp_(min=LOG_ZERO)
        drop = (old_max - shift).clamp(min=LOG_ZERO)
        scale = drop.exp()
        stats.sum_centred[g] = scale * (stats.sum_centred[g] + drop * stats.sum_exp[g]) + torch.linalg.vecdot(p, z)
        stats.sum_exp[g] = scale * stats.sum_exp[g] + p.sum(1)
        stats.maximum[g] = new_max


def d_logits(
    raw: Tensor,
    out: Tensor,
    stats: RowStatistics,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    targets: Tensor,
    logits: Logits,
    v_start: int,
    rows: Tensor | None = None,
) -> None:
    """Write dL/d(raw) of (12)-(13) for a block of raw logits (n, Vb) into out, which may be the same memory."""
    log_sum = stats.sum_exp.log()
    entropy = stats.entropy()
    target_slope = target_d_logits(stats, grad_logprobs, grad_entropy)
    for g in _groups(stats.maximum.numel(), raw.shape[1]):
        z = _tempered(_take(raw, rows, g), logits, g, v_start)
        slope = None if logits.softcap is None else _softcap_slope(z, logits, g)
        z.sub_(stats.maximum[g].unsqueeze(1)).sub_(log_sum[g].unsqueeze(1))
        p = z.exp()
        if grad_entropy is not None:
            e = grad_entropy[g]
            constant = -e * entropy[g] if grad_logprobs is None else -grad_logprobs[g] - e * entropy[g]
            d = z.clamp_(min=LOG_ZERO).mul_(-e.unsqueeze(1)).add_(constant.unsqueeze(1)).mul_(p)
        else:
            assert grad_logprobs is not None, "one of the two gradients is given"
            d = p.mul_(-grad_logprobs[g].unsqueeze(1))
        _set_targets(d, target_slope[g], targets[g], v_start)
        if slope is not None:
            d.mul_(slope)
        d.div_(logits.temperature_of(g))
        if rows is None:
            out[g] = d
        else:
            out[rows[g]] = d.to(out.dtype)


def policy_rows(
    raw: Tensor, out: Tensor, targets: Tensor, logits: Logits, inputs: PolicyInputs, config: ObjectiveConfig
) -> tuple[RowStatistics, Tensor]:
    """Statistics of complete rows (n, V), then their policy-loss gradient into out. Returns the statistics and d(loss)/d(logprobs)."""
    stats = RowStatistics.empty(raw.shape[0], statistics_dtype(raw.dtype), raw.device)
    update_statistics(raw, stats, targets, logits, 0)
    grad_logprobs = policy_tokens(stats.logprobs(), stats.entropy(), inputs, config).grad_logprobs
    d_logits(raw, out, stats, grad_logprobs, -inputs.entropy_weights, targets, logits, 0)
    return stats, grad_logprobs


def _groups(num_rows: int, width: int) -> Iterator[slice]:
    size = max(1, SCRATCH_ELEMENTS // max(width, 1))
    return (slice(i, min(i + size, num_rows)) for i in range(0, num_rows, size))


def _take(raw: Tensor, rows: Tensor | None, group: slice) -> Tensor:
    return raw[group] if rows is None else raw.index_select(0, rows[group])


def _tempered(raw: Tensor, logits: Logits, group: slice, v_start: int) -> Tensor:
    """Equation (2) on a copy of the group."""
    z = raw.to(statistics_dtype(raw.dtype), copy=True)
    if logits.bias is not None:
        z.add_(logits.bias[v_start : v_start + z.shape[1]])
    if logits.softcap is not None:
        masked = z == -torch.inf
        z.div_(logits.softcap).tanh_().mul_(logits.softcap).masked_fill_(masked, -torch.inf)
    return z.div_(logits.temperature_of(group))


def _softcap_slope(z: Tensor, logits: Logits, group: slice) -> Tensor:
    """1 - tanh^2 of (13) from the capped, tempered logits; 0 for masked columns, whose gradient is 0 anyway."""
    assert logits.softcap is not None, "called with a softcap only"
    tanh = (z * logits.temperature_of(group)).div_(logits.softcap).clamp_(min=-1.0)
    return tanh.square_().neg_().add_(1.0)


def _gather_targets(z: Tensor, target_logit: Tensor, targets: Tensor, v_start: int) -> None:
    column = targets - v_start
    inside = (column >= 0) & (column < z.shape[1])
    value = z.gather(1, column.clamp(0, z.shape[1] - 1).unsqueeze(1)).squeeze(1)
    target_logit.copy_(torch.where(inside, value, target_logit))


def _set_targets(d: Tensor, value: Tensor, targets: Tensor, v_start: int) -> None:
    column = targets - v_start
    inside = (column >= 0) & (column < d.shape[1])
    column = column.clamp(0, d.shape[1] - 1).unsqueeze(1)
    d.scatter_(1, column, torch.where(inside.unsqueeze(1), value.unsqueeze(1), d.gather(1, column)))
