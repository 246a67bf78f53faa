"""Row operations on blocks of raw logits in plain PyTorch: the same three functions as `aer_kernels.kernels`, for any device.

Rows are walked in groups, on a CPU so small that they stay in its cache, so beside the block only scratch groups exist.
Equation numbers are those of `aer_kernels.reference`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aer_kernels.blocked.gemm import statistics_dtype
from aer_kernels.objectives.policy import PolicyInputs, Surrogate, policy_tokens
from aer_kernels.plan import TORCH_SCRATCH_COPIES, group_rows
from aer_kernels.statistics import LOG_ZERO, RowStatistics, Tempering, target_d_logits

SCRATCH_COPIES = TORCH_SCRATCH_COPIES
"""Copies of a row group that these functions make at most."""


SCALED_ELEMENTS = 1 << 20
"""Elements that `scale` holds in fp32 on their way."""


def update_statistics(
    raw: Tensor, stats: RowStatistics, targets: Tensor, tempering: Tempering, v_start: int, keep: Tensor | None = None
) -> None:
    """Fold a block of raw logits (n, Vb), columns v_start.. of the vocabulary, into the running statistics of its rows (16).

    keep: (n,) bool; other rows are left alone.
    """
    scratch = _scratch(raw)
    for g in _groups(raw, keep):
        part = stats.part(g)
        z = _tempered(raw[g], tempering, g, targets[g], v_start)
        _update_group(z, part, targets[g], v_start, scratch, _in_entropy(z, tempering, g))
        if isinstance(g, Tensor):
            for whole, found in zip(stats.vectors(), part.vectors(), strict=True):
                whole[g] = found


def _update_group(z: Tensor, stats: RowStatistics, targets: Tensor, v_start: int, scratch: Tensor, in_entropy: Tensor | None) -> Tensor:
    """(16) for one group of tempered logits, which become z - m. Returns exp(z - m), in scratch.

    in_entropy: which logits count in the entropy; None: all.
    """
    _gather_targets(z, stats.target_logit, targets, v_start)
    new_max = torch.maximum(stats.maximum, z.amax(1))
    shift = new_max.masked_fill(new_max == -torch.inf, 0.0)  # all -inf so far: any finite shift gives exp(-inf) = 0
    z.sub_(shift.unsqueeze(1))
    p = torch.exp(z, out=scratch[: z.shape[0]])
    z.clamp_(min=LOG_ZERO)
    drop = (stats.maximum - shift).clamp(min=LOG_ZERO)
    scale = drop.exp()
    of_entropy = p if in_entropy is None else p * in_entropy
    stats.sum_centred.copy_(scale * (stats.sum_centred + drop * stats.mass) + torch.linalg.vecdot(of_entropy, z))
    if stats.sum_kept is not None:
        stats.sum_kept.copy_(scale * stats.sum_kept + of_entropy.sum(1))
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
    tempering: Tempering,
    v_start: int,
    keep: Tensor | None = None,
) -> None:
    """Write dL/d(raw) of (12)-(13) for a block of raw logits (n, Vb) into out, which may be the same memory.

    keep: (n,) bool; other rows become 0.
    """
    at_target, scratch = target_d_logits(stats, grad_logprobs, grad_entropy, _entropy_floor(tempering)), _scratch(raw)
    if keep is not None:
        out[~keep] = 0
    for g in _groups(raw, keep):
        z = _tempered(raw[g], tempering, g, targets[g], v_start, overwrite=_same_memory(raw, out))
        in_entropy = _in_entropy(z, tempering, g)
        slope = None if tempering.softcap is None else _softcap_slope(z, tempering, g)
        z.sub_(stats.maximum[g].unsqueeze(1))
        p = torch.exp(z, out=scratch[: z.shape[0]])
        grads = [None if x is None else x[g] for x in (grad_logprobs, grad_entropy)]
        d = _d_group(z, p, stats.part(g), grads[0], grads[1], in_entropy)
        _finish_group(d, out, g, at_target[g], targets[g], tempering, slope, v_start)
        del z, d, slope, in_entropy  # or the next group would be made while this one is still held


def _d_group(
    z: Tensor, p: Tensor, stats: RowStatistics, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, in_entropy: Tensor | None
) -> Tensor:
    """(12) without its target term from z - m and exp(z - m): p / s * (-g - e (z - m - log s + H)). Overwrites z.

    in_entropy: which logits count in the entropy, whose term then has k in place of s; None: all.
    """
    if grad_entropy is None:
        assert grad_logprobs is not None, "one of the two gradients is given"
        return torch.mul(p, (-grad_logprobs / stats.sum_exp).unsqueeze(1), out=z)
    if in_entropy is not None:
        slope = -grad_entropy / stats.mass
        constant = slope * (stats.entropy() - stats.mass.log())
        z.clamp_(min=LOG_ZERO).mul_(slope.unsqueeze(1)).add_(constant.unsqueeze(1)).mul_(in_entropy)
        return (z if grad_logprobs is None else z.sub_((grad_logprobs / stats.sum_exp).unsqueeze(1))).mul_(p)
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
    tempering: Tempering,
    inputs: PolicyInputs,
    surrogate: Surrogate,
) -> None:
    """Statistics of complete rows (n, V) into empty stats, d(loss)/d(logprobs) (n,) into slopes, and the policy-loss gradient into out.

    out may be the same memory as raw.
    """
    scratch = _scratch(raw)
    for g in _groups(raw, None):
        z = _tempered(raw[g], tempering, g, targets[g], 0, overwrite=_same_memory(raw, out))
        in_entropy = _in_entropy(z, tempering, g)
        softcap_slope = None if tempering.softcap is None else _softcap_slope(z, tempering, g)
        part, group_inputs = stats.part(g), inputs.part(g)
        p = _update_group(z, part, targets[g], 0, scratch, in_entropy)
        slopes[g] = policy_tokens(part.logprobs(), part.entropy(), group_inputs, surrogate).grad_logprobs
        grads = slopes[g], -group_inputs.entropy_weights
        d = _d_group(z, p, part, *grads, in_entropy)
        at_target = target_d_logits(part, *grads, _entropy_floor(tempering, g))
        _finish_group(d, out, g, at_target, targets[g], tempering, softcap_slope, 0)
        del z, p, d, softcap_slope, in_entropy


def row_floors(raw: Tensor, tempering: Tempering, wanted: float, *, count: bool, crossing: bool = True) -> Tensor:
    """Floor of each of complete rows of raw logits (n, V): half way from the last logit that is kept to the next, -inf where all are kept.

    wanted: the share of the probability that the kept logits must reach or, with `count`, their number.
    crossing: whether the logit that reaches it is kept; the largest always is.
    """
    out = raw.new_empty(raw.shape[0])
    for g in _groups(raw, None):
        z = _tempered(raw[g], tempering, g, torch.zeros(0), 0).sort(1, descending=True).values
        if count:
            last = torch.full_like(z[:, :1], wanted - 1, dtype=torch.int64)
        else:
            p = (z - z[:, :1]).exp()
            mass = p.cumsum(1)
            last = (mass < wanted * mass[:, -1:]).sum(1, keepdim=True).clamp(max=z.shape[1] - 1)
        kept = z.gather(1, last)
        if not crossing:  # what is equal to the last one goes with it
            last = (z > kept).sum(1, keepdim=True).sub_(1).clamp_(min=0)
            kept = z.gather(1, last)
        below = z.masked_fill_(z >= kept, -torch.inf).amax(1, keepdim=True)
        out[g] = torch.where(below == -torch.inf, below, kept + 0.5 * (below - kept)).squeeze(1)
    return out


def row_moments(raw: Tensor, stats: RowStatistics, tempering: Tempering) -> tuple[Tensor, Tensor]:
    """sum p^2 and sum p^2 (log p + H) of each of complete rows of raw logits (n, V), (n,) each."""
    squares, surprise = torch.empty_like(stats.sum_exp), torch.empty_like(stats.sum_exp)
    for g in _groups(raw, None):
        part = stats.part(g)
        logp = _tempered(raw[g], tempering, g, torch.zeros(0), 0).sub_((part.maximum + part.sum_exp.log()).unsqueeze(1))
        square = (2.0 * logp).exp()
        squares[g] = square.sum(1)
        surprise[g] = (square * (logp.clamp_(min=LOG_ZERO) + part.entropy().unsqueeze(1))).sum(1)
    return squares, surprise


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
    tempering: Tempering,
    softcap_slope: Tensor | None,
    v_start: int,
) -> None:
    """The target term of (12), the slope of (13), and the store."""
    _set_targets(d, at_target, targets, v_start)
    if softcap_slope is not None:
        d.mul_(softcap_slope)
    if isinstance(tempering.temperature, Tensor) or tempering.temperature != 1.0:
        d.div_(tempering.temperature_of(group))
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


def _tempered(
    raw: Tensor, tempering: Tempering, group: slice | Tensor, targets: Tensor, v_start: int, *, overwrite: bool = False
) -> Tensor:
    """Equation (2), in place or on a copy of the group; -inf below a floor that is not that of the entropy alone."""
    z = raw if overwrite and isinstance(group, slice) else raw.to(statistics_dtype(raw.dtype), copy=True)
    if tempering.bias is not None:
        z.add_(tempering.bias[v_start : v_start + z.shape[1]])
    if tempering.softcap is not None:
        masked = z == -torch.inf
        z.div_(tempering.softcap).tanh_().mul_(tempering.softcap).masked_fill_(masked, -torch.inf)
    if isinstance(tempering.temperature, Tensor) or tempering.temperature != 1.0:
        z.div_(tempering.temperature_of(group))
    if tempering.floor is not None and not tempering.entropy_alone:
        below = z < tempering.floor[group].unsqueeze(1)
        _set_targets(below, torch.zeros_like(targets, dtype=torch.bool), targets, v_start)
        z.masked_fill_(below, -torch.inf)
    return z


def _in_entropy(z: Tensor, tempering: Tempering, group: slice | Tensor) -> Tensor | None:
    """Which of the tempered logits count in the entropy, where these are not all."""
    floor = _entropy_floor(tempering, group)
    return None if floor is None else z >= floor.unsqueeze(1)


def _entropy_floor(tempering: Tempering, group: slice | Tensor = slice(None)) -> Tensor | None:
    """The floor of some rows where it is that of the entropy alone."""
    return tempering.floor[group] if tempering.floor is not None and tempering.entropy_alone else None


def _softcap_slope(z: Tensor, tempering: Tempering, group: slice | Tensor) -> Tensor:
    """1 - tanh^2 of (13) from the capped, tempered logits; 0 for masked columns, whose gradient is 0 anyway."""
    assert tempering.softcap is not None, "called with a softcap only"
    tanh = (z * tempering.temperature_of(group)).div_(tempering.softcap).clamp_(min=-1.0)
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
