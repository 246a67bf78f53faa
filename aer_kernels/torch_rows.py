"""Row operations on blocks of raw logits in plain PyTorch: the same three functions as `aer_kernels.kernels`, for any device.

Rows are walked in groups, on a CPU so small that they stay in its cache, so beside the block only scratch groups exist.
Equation numbers are those of `aer_kernels.reference`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aer_kernels.blocked.gemm import statistics_dtype
from aer_kernels.objectives.policy import ObjectiveConfig, PolicyInputs, policy_tokens
from aer_kernels.plan import TORCH_SCRATCH_COPIES, group_rows
from aer_kernels.statistics import LOG_ZERO, Logits, RowStatistics, target_d_logits

SCRATCH_COPIES = TORCH_SCRATCH_COPIES
"""Copies of a row group that these functions make at most."""


SCALED_ELEMENTS = 1 << 20
"""Elements that `scale` holds in fp32 on their way."""


def update_statistics(raw: Tensor, stats: RowStatistics, targets: Tensor, logits: Logits, v_start: int, keep: Tensor | None = None) -> None:
    """Fold a block of raw logits (n, Vb), columns v_start.. of the vocabulary, into the running statistics of its rows (16).

    keep: (n,) bool; other rows are left alone.
    """
    scratch = _scratch(raw)
    for g in _groups(raw, keep):
        part = stats.part(g)
        _update_group(_tempered(raw[g], logits, g, v_start), part, targets[g], v_start, scratch)
        if isinstance(g, Tensor):
            for whole, found in zip(stats.vectors(), part.vectors(), strict=True):
                whole[g] = found


def _update_group(z: Tensor, stats: RowStatistics, targets: Tensor, v_start: int, scratch: Tensor) -> Tensor:
    """(16) for one group of tempered logits, which become z - m. Returns exp(z - m), in scratch."""
    _gather_targets(z, stats.target_logit, targets, v_start)
    new_max = torch.maximum(stats.maximum, z.amax(1))
    shift = new_max.masked_fill(new_max == -torch.inf, 0.0)  # all -inf so far: any finite shift gives exp(-inf) = 0
    z.sub_(shift.unsqueeze(1))
    p = torch.exp(z, out=scratch[: z.shape[0]])
    z.clamp_(min=LOG_ZERO)
    drop = (stats.maximum - shift).clamp(min=LOG_ZERO)
    scale = drop.exp()
    stats.sum_centred.copy_(scale * (stats.sum_centred + drop * stats.sum_exp) + torch.linalg.vecdot(p, z))
    stats.sum_exp.copy_(scale * stats.sum_exp + p.sum(1))
    stats.maximum.copy_(new_max)
    return p


def d_logits(
    raw: Tensor,
    out: Tensor,
    stats: RowStatistics,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    targets: Tensor,
    logits: Logits,
    v_start: int,
    keep: Tensor | None = None,
) -> None:
    """Write dL/d(raw) of (12)-(13) for a block of raw logits (n, Vb) into out, which may be the same memory.

    keep: (n,) bool; other rows become 0.
    """
    at_target, scratch = target_d_logits(stats, grad_logprobs, grad_entropy), _scratch(raw)
    if keep is not None:
        out[~keep] = 0
    for g in _groups(raw, keep):
        z = _tempered(raw[g], logits, g, v_start, overwrite=_same_memory(raw, out))
        slope = None if logits.softcap is None else _softcap_slope(z, logits, g)
        z.sub_(stats.maximum[g].unsqueeze(1))
        p = torch.exp(z, out=scratch[: z.shape[0]])
        d = _d_group(z, p, stats.part(g), *(None if x is None else x[g] for x in (grad_logprobs, grad_entropy)))
        _finish_group(d, out, g, at_target[g], targets[g], logits, slope, v_start)
        del z, d, slope  # or the next group would be made while this one is still held


def _d_group(z: Tensor, p: Tensor, stats: RowStatistics, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> Tensor:
    """(12) without its target term from z - m and exp(z - m): p / s * (-g - e (z - m - log s + H)). Overwrites z."""
    if grad_entropy is None:
        assert grad_logprobs is not None, "one of the two gradients is given"
        return torch.mul(p, (-grad_logprobs / stats.sum_exp).unsqueeze(1), out=z)
    constant = -grad_entropy * (stats.entropy() - stats.sum_exp.log())
    if grad_logprobs is not None:
        constant = constant - grad_logprobs
    slope = (-grad_entropy / stats.sum_exp).unsqueeze(1)
    return z.clamp_(min=LOG_ZERO).mul_(slope).add_((constant / stats.sum_exp).unsqueeze(1)).mul_(p)


def policy_rows(
    raw: Tensor,
    out: Tensor,
    stats: RowStatistics,
    slopes: Tensor,
    targets: Tensor,
    logits: Logits,
    inputs: PolicyInputs,
    config: ObjectiveConfig,
) -> None:
    """Statistics of complete rows (n, V) into empty stats, d(loss)/d(logprobs) (n,) into slopes, and the policy-loss gradient into out.

    out may be the same memory as raw.
    """
    scratch = _scratch(raw)
    for g in _groups(raw, None):
        z = _tempered(raw[g], logits, g, 0, overwrite=_same_memory(raw, out))
        softcap_slope = None if logits.softcap is None else _softcap_slope(z, logits, g)
        part, group_inputs = stats.part(g), inputs.part(g)
        p = _update_group(z, part, targets[g], 0, scratch)
        slopes[g] = policy_tokens(part.logprobs(), part.entropy(), group_inputs, config).grad_logprobs
        grads = slopes[g], -group_inputs.entropy_weights
        d = _d_group(z, p, part, *grads)
        _finish_group(d, out, g, target_d_logits(part, *grads), targets[g], logits, softcap_slope, 0)
        del z, p, d, softcap_slope


def scale(values: Tensor, factor: Tensor, out: Tensor, *, add: bool) -> None:
    """out = values * factor (0-dim), or += with `add`: in fp32, rounded once."""
    rows = max(1, SCALED_ELEMENTS // max(values[:1].numel(), 1))
    for start in range(0, values.shape[0], rows):
        part = slice(start, start + rows)
        found = values[part].to(factor.dtype) * factor
        out[part] = out[part] + found if add else found


def _finish_group(
    d: Tensor,
    out: Tensor,
    group: slice | Tensor,
    at_target: Tensor,
    targets: Tensor,
    logits: Logits,
    softcap_slope: Tensor | None,
    v_start: int,
) -> None:
    """The target term of (12), the slope of (13), and the store."""
    _set_targets(d, at_target, targets, v_start)
    if softcap_slope is not None:
        d.mul_(softcap_slope)
    if isinstance(logits.temperature, Tensor) or logits.temperature != 1.0:
        d.div_(logits.temperature_of(group))
    if isinstance(group, Tensor) or d.data_ptr() != out[group].data_ptr():
        out[group] = d.to(out.dtype)


def _scratch(raw: Tensor) -> Tensor:
    """Memory of one group: made once, as fresh pages cost more than the arithmetic on them."""
    rows = _group_rows(raw.shape[0], raw)
    return raw.new_empty(rows, raw.shape[1], dtype=statistics_dtype(raw.dtype))


def _group_rows(num_rows: int, raw: Tensor) -> int:
    return group_rows(num_rows, raw.shape[1], raw.device.type == "cpu")


def _groups(raw: Tensor, keep: Tensor | None) -> Iterator[slice] | Iterator[Tensor]:
    if keep is None:
        size = _group_rows(raw.shape[0], raw)
        return (slice(i, min(i + size, raw.shape[0])) for i in range(0, raw.shape[0], size))
    rows = keep.nonzero().squeeze(1)
    return iter(rows.split(_group_rows(rows.numel(), raw)) if rows.numel() else ())


def _same_memory(raw: Tensor, out: Tensor) -> bool:
    return raw.dtype == out.dtype and raw.data_ptr() == out.data_ptr()


def _tempered(raw: Tensor, logits: Logits, group: slice | Tensor, v_start: int, *, overwrite: bool = False) -> Tensor:
    """Equation (2), in place or on a copy of the group."""
    z = raw if overwrite and isinstance(group, slice) else raw.to(statistics_dtype(raw.dtype), copy=True)
    if logits.bias is not None:
        z.add_(logits.bias[v_start : v_start + z.shape[1]])
    if logits.softcap is not None:
        masked = z == -torch.inf
        z.div_(logits.softcap).tanh_().mul_(logits.softcap).masked_fill_(masked, -torch.inf)
    if isinstance(logits.temperature, Tensor) or logits.temperature != 1.0:
        z.div_(logits.temperature_of(group))
    return z


def _softcap_slope(z: Tensor, logits: Logits, group: slice | Tensor) -> Tensor:
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
