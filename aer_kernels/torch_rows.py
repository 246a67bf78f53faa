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
from aer_kernels.plan import group_rows
from aer_kernels.statistics import Logits, RowStatistics, target_d_logits

WRITES_IN_PLACE = False
"""Whether low-precision d_logits can overwrite the fp32 block they are made from."""

LOG_ZERO = -1e4
"""Stands in for a log-prob of -inf where it is multiplied by its probability, which is exactly 0 there."""


def update_statistics(raw: Tensor, stats: RowStatistics, targets: Tensor, logits: Logits, v_start: int, rows: Tensor | None = None) -> None:
    """Fold a block of raw logits (n, Vb), columns v_start.. of the vocabulary, into the running statistics of its rows (16)."""
    for g in _groups(stats.maximum.numel(), raw.shape[1]):
        _update_group(_tempered(_take(raw, rows, g), logits, g, v_start), stats.part(g), targets[g], v_start)


def _update_group(z: Tensor, stats: RowStatistics, targets: Tensor, v_start: int) -> None:
    """(16) for one group of tempered logits, which are overwritten."""
    _gather_targets(z, stats.target_logit, targets, v_start)
    new_max = torch.maximum(stats.maximum, z.amax(1))
    shift = new_max.masked_fill(new_max == -torch.inf, 0.0)  # all -inf so far: any finite shift gives exp(-inf) = 0
    z.sub_(shift.unsqueeze(1))
    p = z.exp()
    z.clamp_(min=LOG_ZERO)
    drop = (stats.maximum - shift).clamp(min=LOG_ZERO)
    scale = drop.exp()
    stats.sum_centred.copy_(scale * (stats.sum_centred + drop * stats.sum_exp) + torch.linalg.vecdot(p, z))
    stats.sum_exp.copy_(scale * stats.sum_exp + p.sum(1))
    stats.maximum.copy_(new_max)


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
    at_target = target_d_logits(stats, grad_logprobs, grad_entropy)
    for g in _groups(stats.maximum.numel(), raw.shape[1]):
        z = _tempered(_take(raw, rows, g), logits, g, v_start)
        slope = None if logits.softcap is None else _softcap_slope(z, logits, g)
        grads = (None if x is None else x[g] for x in (grad_logprobs, grad_entropy))
        d = _d_group(z, stats.part(g), *grads)
        _set_targets(d, at_target[g], targets[g], v_start)
        if slope is not None:
            d.mul_(slope)
        d.div_(logits.temperature_of(g))
        out[g if rows is None else rows[g]] = d.to(out.dtype)
        del z, d, slope  # or the next group would be made while this one is still held


def _d_group(z: Tensor, stats: RowStatistics, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> Tensor:
    """(12) without its target term for one group of tempered logits, which are overwritten: p * (-g - e (logp + H))."""
    logp = z.sub_(stats.maximum.unsqueeze(1)).sub_(stats.sum_exp.log().unsqueeze(1))
    p = logp.exp()
    if grad_entropy is None:
        assert grad_logprobs is not None, "one of the two gradients is given"
        return p.mul_(-grad_logprobs.unsqueeze(1))
    constant = -grad_entropy * stats.entropy()
    if grad_logprobs is not None:
        constant = constant - grad_logprobs
    return logp.clamp_(min=LOG_ZERO).mul_(-grad_entropy.unsqueeze(1)).add_(constant.unsqueeze(1)).mul_(p)


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
    size = group_rows(num_rows, width)
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
