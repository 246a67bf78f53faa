"""The policy loss in chunks: statistics, coefficients and gradients while the logits of a chunk are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from aer_kernels.blocked import gemm
from aer_kernels.blocked.factors import Head, HeadGradients, HeadNeeds
from aer_kernels.blocked.memory import BlockMemory, blocks, logit_blocks
from aer_kernels.blocked.parallel import merge_statistics, start_sum
from aer_kernels.objectives.policy import PolicyInputs, Surrogate, policy_tokens
from aer_kernels.plan import Plan, moved_rows, product_rows
from aer_kernels.statistics import RowStatistics


class PolicyGradients(NamedTuple):
    """What one pass over the logits gives."""

    stats: RowStatistics
    gradients: HeadGradients
    """In `stored_dtype`."""
    dropped: Tensor
    """0-dim: bound on the L1 norm of the d_logits that `tolerance` left out."""


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of gradients from the forward to the backward pass: that of the parameter, but fp32 for fp16, whose range is too small."""
    return torch.float32 if dtype == torch.float16 else dtype


def policy_gradients(
    head: Head, plan: Plan, inputs: PolicyInputs, surrogate: Surrogate, needs: HeadNeeds, tolerance: Tensor | None
) -> PolicyGradients:
    """Statistics of every row, and gradients of the sum of `PolicyTokens.loss`, 6 n*V*D FLOPs.

    tolerance: 0-dim; rows whose d_logits have an L1 norm of at most this are left out of the gradient products (None: none is, and the
    device is not asked); 0 leaves out exactly those without a gradient, such as clipped ratios.
    """
    size = head.selection.size
    stats = RowStatistics.empty(size, gemm.statistics_dtype(head.dtype), head.like.device, head.tempering.num_statistics)
    sums = _GradientSums(head, plan, needs)
    memory = BlockMemory(min(plan.grad_rows, size), head.vocab_size, plan.tail_rows, head.like)
    slopes = torch.empty_like(stats.maximum)
    dropped = torch.zeros((), dtype=slopes.dtype, device=slopes.device)
    for chunk in blocks(size, plan.grad_rows):
        hidden = head.hidden_of(chunk)
        d = memory.d_logits(chunk.stop - chunk.start, head.vocab_size)
        for inner in logit_blocks(d.shape[0], plan.row_block, plan.tail_rows):
            outer = slice(chunk.start + inner.start, chunk.start + inner.stop)
            raw = memory.logits(d[inner])
            head.logits_(raw, tuple(x[inner] for x in hidden), slice(0, head.vocab_size))
            _rows(head, raw, d[inner], stats.part(outer), slopes[outer], outer, inputs.part(outer), surrogate)
        if tolerance is None:
            sums.add(chunk, d, hidden)
        else:
            bound = _l1_bound(stats.part(chunk), slopes[chunk], inputs.entropy_weights[chunk])
            keep = ~(bound <= tolerance)  # NaN is kept, so that it shows in the gradient
            dropped += bound.masked_fill(keep, 0.0).sum()
            sums.add_some(chunk, d, hidden, keep)
    return PolicyGradients(stats, sums.finish(), dropped)


def _rows(
    head: Head, raw: Tensor, out: Tensor, stats: RowStatistics, slopes: Tensor, rows: slice, inputs: PolicyInputs, surrogate: Surrogate
) -> None:
    """d_logits of complete rows into out, their statistics and d(loss)/d(logprobs) into stats and slopes."""
    tempering, targets = head.tempering.part(rows), head.targets[rows]
    if head.group is None:
        head.backend.policy_rows(raw, out, stats, slopes, targets, tempering, inputs, surrogate)
        return
    head.backend.update_statistics(raw, stats, targets, tempering, 0)
    stats.copy_(merge_statistics(stats, head.group))
    slopes.copy_(policy_tokens(stats.logprobs(), stats.entropy(), inputs, surrogate).grad_logprobs)
    head.backend.d_logits(raw, out, stats, slopes, -inputs.entropy_weights, targets, tempering, 0)


def _l1_bound(stats: RowStatistics, slope: Tensor, entropy_weights: Tensor) -> Tensor:
    """Bound on sum_v |dL/dz_v| of (12): 2 |g| (1 - p_y) + 2 |e| H, for sum_v p |log p + H| = E|X - EX| <= 2 EX with X = -log p >= 0."""
    return 2.0 * (slope.abs() * -torch.expm1(stats.logprobs()) + entropy_weights.abs() * stats.entropy())


class _GradientSums:
    """The gradients of a head, growing chunk by chunk."""

    def __init__(self, head: Head, plan: Plan, needs: HeadNeeds) -> None:
        self.head = head
        self.product_rows = plan.row_block if plan.batch_invariant else product_rows(head.like.device)
        dtype, stored = gemm.statistics_dtype(head.dtype), stored_dtype(head.dtype)
        self.once, self.started = plan.grad_rows >= head.selection.size > 0, False
        self.hidden = [torch.zeros_like(f.hidden) if n else None for f, n in zip(head.factors, needs.hidden, strict=True)]
        summed = stored if self.once else dtype
        self.weight = [torch.empty_like(f.weight, dtype=summed) if n else None for f, n in zip(head.factors, needs.weight, strict=True)]
        self.bias = head.like.new_zeros(head.vocab_size, dtype=dtype) if needs.bias else None

    def add(self, chunk: slice, d: Tensor, hidden: tuple[Tensor, ...]) -> None:
        """Add the products of all rows of a chunk."""
        real = slice(chunk.start, min(chunk.stop, self.head.selection.num))  # padding carries no gradient
        self._products(self.head.selection.tokens(real), d, hidden)

    def add_some(self, chunk: slice, d: Tensor, hidden: tuple[Tensor, ...], keep: Tensor) -> None:
        """Add the products of the kept rows of a chunk only; d is overwritten."""
        front, order = _move_to_front(d, keep)
        if order is None:
            return self.add(chunk, d, hidden)
        kept = chunk.start + order
        tokens = kept if self.head.selection.rows is None else self.head.selection.rows.index_select(0, kept)
        self._products(tokens, front, tuple(x.index_select(0, order) for x in hidden))

    def _products(self, tokens: slice | Tensor, d: Tensor, hidden: tuple[Tensor, ...]) -> None:
        finish = [self._add_hidden(i, tokens, d) for i, total in enumerate(self.hidden) if total is not None]
        for total, x in zip(self.weight, hidden, strict=True):
            if total is not None:
                write = gemm.add_grad_weight_ if self.started else gemm.grad_weight_
                write(total, d, x)
        self.started = True
        if self.bias is not None:
            self.bias += d.sum(0, dtype=self.bias.dtype)
        for store in finish:
            store()

    def _add_hidden(self, factor: int, tokens: slice | Tensor, d: Tensor) -> Callable[[], None]:
        """Form grad_hidden of a chunk. Where the vocabulary is split, the returned call stores it once all parts of it have arrived."""
        total, weight, group = self.hidden[factor], self.head.factors[factor].weight, self.head.group
        assert total is not None, "called where the gradient is needed"
        dtype = total.dtype if group is None else gemm.statistics_dtype(total.dtype)
        pending = []
        for r in blocks(d.shape[0], self.product_rows):
            where = _part(tokens, r)
            if group is None and isinstance(where, slice) and where.stop - where.start == r.stop - r.start:
                gemm.grad_hidden_(total[where], d[r], weight)
            elif group is None:
                _store(total, where, gemm.grad_hidden(d[r], weight, dtype))
            else:
                value = gemm.grad_hidden(d[r], weight, dtype)
                pending.append((where, value, start_sum(value, group)))

        def store() -> None:
            for where, value, wait in pending:
                wait()
                _store(total, where, value)

        return store

    def finish(self) -> HeadGradients:
        """The gradients, the weights' rounded once to the dtype they are stored in."""
        stored = stored_dtype(self.head.dtype)
        if not self.started:
            for w in (w for w in self.weight if w is not None):
                w.zero_()
        return HeadGradients(tuple(self.hidden), tuple(None if w is None else w.to(stored) for w in self.weight), self.bias)


def _part(tokens: slice | Tensor, rows: slice) -> slice | Tensor:
    """Where some rows of a chunk go; fewer than `rows` at its end, where padding has no token."""
    if isinstance(tokens, slice):
        return slice(tokens.start + rows.start, min(tokens.start + rows.stop, tokens.stop))
    return tokens[rows]


def _store(total: Tensor, where: slice | Tensor, value: Tensor) -> None:
    if isinstance(where, slice):
        total[where] = value[: where.stop - where.start]
    else:
        total.index_copy_(0, where, value[: where.numel()].to(total.dtype))


def _move_to_front(d: Tensor, keep: Tensor) -> tuple[Tensor, Tensor | None]:
    """Leave out rows in place: kept rows from the back fill the holes in front. Returns the front and what its rows were."""
    kept = keep.nonzero().squeeze(1)
    count, total = kept.numel(), keep.numel()
    if count == total:
        return d, None
    holes = (~keep[:count]).nonzero().squeeze(1)
    movers = kept[kept >= count]
    for group in blocks(holes.numel(), moved_rows(total)):
        d.index_copy_(0, holes[group], d.index_select(0, movers[group]))
    order = torch.arange(count, device=d.device)
    order[holes] = movers
    return d[:count], order
