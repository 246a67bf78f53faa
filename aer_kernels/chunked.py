"""The blocked algorithms: matrix products and row operations over blocks of the logits. Nothing of size (N, V) exists here.

A row backend is a module with `update_statistics`, `d_logits` and `policy_rows` (`aer_kernels.torch_rows`, `aer_kernels.kernels`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from aer_kernels import gemm
from aer_kernels.objectives.policy import ObjectiveConfig, PolicyInputs, may_have_gradient
from aer_kernels.plan import Plan
from aer_kernels.statistics import Logits, RowStatistics


@dataclass(frozen=True)
class Head:
    """A linear head and the n of its N tokens that count."""

    hidden: Tensor
    """(N, D)"""
    weight: Tensor
    """(V, D)"""
    rows: Tensor | None
    """(n,) int64 indices into hidden; None: all of them, in order."""
    targets: Tensor
    """(n,) int64"""
    logits: Logits
    """With a per-token temperature of n entries."""
    backend: ModuleType

    def take(self, rows: Tensor) -> Head:
        """The same head for some of its tokens."""
        index = rows if self.rows is None else self.rows.index_select(0, rows)
        return Head(self.hidden, self.weight, index, self.targets.index_select(0, rows), self.logits.take(rows), self.backend)

    def hidden_of(self, rows: slice) -> Tensor:
        """(len(rows), D) hidden states of a slice of the tokens that count."""
        return self.hidden[rows] if self.rows is None else self.hidden.index_select(0, self.rows[rows])


class HeadGradients(NamedTuple):
    """Gradients of a linear head; None where not needed."""

    hidden: Tensor | None
    """(N, D)"""
    weight: Tensor | None
    """(V, D)"""
    bias: Tensor | None
    """(V,)"""


class HeadNeeds(NamedTuple):
    """Which gradients are needed."""

    hidden: bool
    weight: bool
    bias: bool


def forward_statistics(head: Head, plan: Plan) -> RowStatistics:
    """Softmax statistics of every row, 2 n*V*D FLOPs."""
    dtype = gemm.statistics_dtype(head.hidden.dtype)
    num_rows, vocab = head.targets.numel(), head.weight.shape[0]
    stats = RowStatistics.empty(num_rows, dtype, head.hidden.device)
    buffer = head.hidden.new_empty(min(plan.row_block, num_rows) * min(plan.vocab_block, vocab), dtype=dtype)
    for r in _blocks(num_rows, plan.row_block):
        hidden = head.hidden_of(r)
        for v in _blocks(vocab, plan.vocab_block):
            raw = gemm.logits_(_block_view(buffer, r, v), hidden, head.weight[v])
            head.backend.update_statistics(raw, stats.part(r), head.targets[r], head.logits.part(r), v.start)
    return stats


def backward_logprobs(
    head: Head, plan: Plan, stats: RowStatistics, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, needs: HeadNeeds
) -> HeadGradients:
    """Gradients of sum(grad_logprobs * logprobs + grad_entropy * entropy) by recomputing the logits, 6 n*V*D FLOPs."""
    hidden, weight = head.hidden, head.weight
    dtype = gemm.statistics_dtype(hidden.dtype)
    num_rows = head.targets.numel()
    sum_hidden = hidden.new_zeros(num_rows, hidden.shape[1], dtype=dtype) if needs.hidden else None
    grad_weight = torch.zeros_like(weight) if needs.weight else None
    grad_bias = weight.new_zeros(weight.shape[0], dtype=dtype) if needs.bias else None
    buffer = hidden.new_empty(min(plan.row_block, num_rows) * min(plan.vocab_block, weight.shape[0]), dtype=dtype)
    for v in _blocks(weight.shape[0], plan.vocab_block):
        sum_weight = None
        if grad_weight is not None:
            sum_weight = grad_weight[v] if weight.dtype == dtype else torch.zeros_like(grad_weight[v], dtype=dtype)
        for r in _blocks(num_rows, plan.row_block):
            rows_hidden = head.hidden_of(r)
            raw = gemm.logits_(_block_view(buffer, r, v), rows_hidden, weight[v])
            d = _operand(raw, head)
            head.backend.d_logits(
                raw,
                d,
                stats.part(r),
                _slice(grad_logprobs, r),
                _slice(grad_entropy, r),
                head.targets[r],
                head.logits.part(r),
                v.start,
            )
            if sum_hidden is not None:
                gemm.add_grad_hidden_(sum_hidden[r], d, weight[v])
            if sum_weight is not None:
                gemm.add_grad_weight_(sum_weight, d, rows_hidden)
            if grad_bias is not None:
                grad_bias[v] += d.sum(0, dtype=dtype)
        if grad_weight is not None and sum_weight is not None and weight.dtype != dtype:
            grad_weight[v] = sum_weight
    return HeadGradients(None if sum_hidden is None else _spread(sum_hidden, head), grad_weight, grad_bias)


def policy_gradients(
    head: Head, plan: Plan, inputs: PolicyInputs, config: ObjectiveConfig, needs: HeadNeeds
) -> tuple[RowStatistics, HeadGradients]:
    """Statistics of every row, and gradients of the sum of `PolicyTokens.loss`, formed chunk by chunk while the logits are there.

    2 n*V*D FLOPs for the rows whose gradient is exactly zero, 6 n*V*D for the others.
    """
    if not any(needs):
        return forward_statistics(head, plan), HeadGradients(None, None, None)
    possible = may_have_gradient(inputs, config)
    live, idle = possible.nonzero().squeeze(1), (~possible).nonzero().squeeze(1)
    if idle.numel() == 0:
        return _live_gradients(head, plan, inputs, config, needs)
    live_stats, gradients = _live_gradients(head.take(live), plan, inputs.take(live), config, needs)
    stats = RowStatistics.empty(possible.numel(), live_stats.maximum.dtype, possible.device)
    stats.put(live, live_stats)
    stats.put(idle, forward_statistics(head.take(idle), plan))
    return stats, gradients


def _live_gradients(
    head: Head, plan: Plan, inputs: PolicyInputs, config: ObjectiveConfig, needs: HeadNeeds
) -> tuple[RowStatistics, HeadGradients]:
    hidden, weight = head.hidden, head.weight
    dtype = gemm.statistics_dtype(hidden.dtype)
    num_rows, vocab = head.targets.numel(), weight.shape[0]
    stats = RowStatistics.empty(num_rows, dtype, hidden.device)
    grad_hidden = torch.zeros_like(hidden) if needs.hidden else None
    grad_weight = None
    grad_bias = weight.new_zeros(vocab, dtype=dtype) if needs.bias else None
    buffer = hidden.new_empty(min(plan.row_block, num_rows) * vocab, dtype=dtype)
    can_clip = config.kind == "ppo" and inputs.old_logprobs is not None
    for r in _blocks(num_rows, plan.row_block):
        index = torch.arange(r.start, r.stop, device=hidden.device)
        raw = gemm.logits_(_block_view(buffer, r, slice(0, vocab)), head.hidden_of(r), weight)
        d = _operand(raw, head)
        chunk_inputs = inputs.take(index)
        chunk, grad_logprobs = head.backend.policy_rows(raw, d, head.targets[r], head.logits.part(r), chunk_inputs, config)
        stats.put(index, chunk)
        if can_clip:
            d, kept = _drop_rows(d, (grad_logprobs != 0) | (chunk_inputs.entropy_weights != 0))
            index = index if kept is None else index.index_select(0, kept)
        tokens = index if head.rows is None else head.rows.index_select(0, index)
        if grad_hidden is not None:
            grad_hidden.index_copy_(0, tokens, gemm.grad_hidden(d, weight).to(hidden.dtype))
        if needs.weight:
            rows_hidden = hidden.index_select(0, tokens)
            if plan.row_block >= num_rows and d.dtype == weight.dtype != torch.float16:
                grad_weight = torch.mm(d.T, rows_hidden)
            else:
                grad_weight = torch.zeros_like(weight, dtype=dtype) if grad_weight is None else grad_weight
                gemm.add_grad_weight_(grad_weight, d, rows_hidden)
        if grad_bias is not None:
            grad_bias += d.sum(0, dtype=dtype)
    if needs.weight and grad_weight is None:
        grad_weight = torch.zeros_like(weight)
    return stats, HeadGradients(grad_hidden, grad_weight, grad_bias)


def _drop_rows(d: Tensor, keep: Tensor) -> tuple[Tensor, Tensor | None]:
    """Leave out rows in place: kept rows from the back fill the holes in front. Returns the front and what its rows were."""
    kept = keep.nonzero().squeeze(1)
    count, total = kept.numel(), keep.numel()
    if count == total:
        return d, None
    holes = (~keep[:count]).nonzero().squeeze(1)
    movers = kept[kept >= count]
    for group in _blocks(holes.numel(), max(1, total // 16)):
        d.index_copy_(0, holes[group], d.index_select(0, movers[group]))
    order = torch.arange(count, device=d.device)
    order[holes] = movers
    return d[:count], order


def _operand(raw: Tensor, head: Head) -> Tensor:
    """Where d_logits go, in the dtype that enters the gradient products: over the raw logits where the backend can."""
    dtype = gemm.operand_dtype(head.hidden.dtype, raw.device)
    if dtype == raw.dtype:
        return raw
    if head.backend.WRITES_IN_PLACE:
        return raw.view(dtype)[:, : raw.shape[1]]
    return torch.empty_like(raw, dtype=dtype)


def _spread(compact: Tensor, head: Head) -> Tensor:
    """(n, D) gradients of the tokens that count -> (N, D), 0 elsewhere, in the dtype of hidden."""
    if head.rows is None:
        return compact.to(head.hidden.dtype)
    return torch.zeros_like(head.hidden).index_copy_(0, head.rows, compact.to(head.hidden.dtype))


def _block_view(buffer: Tensor, rows: slice, columns: slice) -> Tensor:
    height, width = rows.stop - rows.start, columns.stop - columns.start
    return buffer[: height * width].view(height, width)


def _slice(x: Tensor | None, rows: slice) -> Tensor | None:
    return None if x is None else x[rows]


def _blocks(total: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, total)) for i in range(0, total, size))
