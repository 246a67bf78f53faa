"""Log-probs and entropy in blocks: statistics forward, logits recomputed backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from aer_kernels.blocked import gemm
from aer_kernels.blocked.factors import Head, HeadGradients, HeadNeeds
from aer_kernels.blocked.memory import BlockMemory, block_of, blocks, logit_blocks, scratch_like
from aer_kernels.blocked.parallel import merge_statistics, start_sum
from aer_kernels.plan import Plan
from aer_kernels.statistics import RowStatistics


def forward_statistics(head: Head, plan: Plan, cache: Tensor | None = None) -> RowStatistics:
    """Softmax statistics of every row, 2 n*V*D FLOPs. The raw logits of the first rows are kept in `cache` (C, >= V) where there is one."""
    dtype = gemm.statistics_dtype(head.dtype)
    size, vocab = head.selection.size, head.vocab_size
    stats = RowStatistics.empty(size, dtype, head.like.device, head.tempering.num_statistics)
    flat = scratch_like(min(plan.row_block, size), min(plan.vocab_block, vocab), dtype, head.like)
    num_cached = 0 if cache is None else min(cache.shape[0], size)
    for r in _row_blocks(size, plan.row_block, num_cached):
        hidden, part, targets, tempering = head.hidden_of(r), stats.part(r), head.targets[r], head.tempering.part(r)
        for v in blocks(vocab, plan.vocab_block):
            kept = cache is not None and r.stop <= num_cached
            raw = cache[r, v] if kept else block_of(flat, r.stop - r.start, v.stop - v.start)  # type: ignore[index]
            head.logits_(raw, hidden, v)
            head.backend.update_statistics(raw, part, targets, tempering, v.start)
    return merge_statistics(stats, head.group)


class SavedLogits:
    """Raw logits kept from the forward pass for the first rows of a backward pass."""

    def __init__(self, cache: Tensor, rows: Tensor) -> None:
        self.cache = cache
        """(C, >= V)"""
        self.rows = rows
        """(c,): row of the cache for each of the first c rows."""

    def load_(self, out: Tensor, rows: slice, columns: slice) -> None:
        """Copy a block into out."""
        out.copy_(self.cache[:, columns].index_select(0, self.rows[rows]))


class Upstream(NamedTuple):
    """What the backward pass starts from, for the rows of a selection."""

    stats: RowStatistics
    grad_logprobs: Tensor | None
    grad_entropy: Tensor | None
    saved: SavedLogits | None = None


def backward_logprobs(head: Head, plan: Plan, upstream: Upstream, needs: HeadNeeds, main_grad: Tensor | None = None) -> HeadGradients:
    """Gradients of sum(grad_logprobs * logprobs + grad_entropy * entropy), 4 n*V*D FLOPs and 2 for rows whose logits are not saved.

    main_grad: (V, D) fp32 to which grad_weight of the head is added; it is not returned then.
    """
    size, vocab = head.selection.size, head.vocab_size
    rows = list(_row_blocks(size, plan.grad_rows, 0 if upstream.saved is None else upstream.saved.rows.numel()))
    sums = _GradientSums(head, needs, len(rows), main_grad)
    memory = BlockMemory(min(plan.grad_rows, size), min(plan.grad_columns, vocab), plan.tail_rows, head.like)
    gathered = [head.hidden_of(r) for r in rows[:1]] if len(rows) == 1 else None
    for v in blocks(vocab, plan.grad_columns):
        sums.open(v)
        for i, r in enumerate(rows):
            hidden = head.hidden_of(r) if gathered is None else gathered[i]
            d = memory.d_logits(r.stop - r.start, v.stop - v.start)
            _write_d_logits(d, head, plan, memory, hidden, r, v, upstream)
            sums.add(d, hidden, r, v, first=i == 0)
        sums.close(v)
    return sums.finish()


def _write_d_logits(
    d: Tensor, head: Head, plan: Plan, memory: BlockMemory, hidden: tuple[Tensor, ...], rows: slice, columns: slice, upstream: Upstream
) -> None:
    """d_logits of a block, through blocks of raw logits that are saved or computed again."""
    whole = [slice(0, d.shape[0])]
    for inner in whole if memory.in_place else logit_blocks(d.shape[0], plan.row_block, plan.tail_rows):
        outer = slice(rows.start + inner.start, rows.start + inner.stop)
        raw = memory.logits(d[inner])
        if upstream.saved is not None and outer.stop <= upstream.saved.rows.numel():
            upstream.saved.load_(raw, outer, columns)
        else:
            head.logits_(raw, tuple(x[inner] for x in hidden), columns)
        grads = (None if g is None else g[outer] for g in (upstream.grad_logprobs, upstream.grad_entropy))
        head.backend.d_logits(
            raw, d[inner], upstream.stats.part(outer), *grads, head.targets[outer], head.tempering.part(outer), columns.start
        )


class _GradientSums:
    """The gradients of a head, block by block: grad_hidden grows over the vocabulary, grad_weight over the rows."""

    def __init__(self, head: Head, needs: HeadNeeds, num_blocks: int, main_grad: Tensor | None) -> None:
        self.head, self.main_grad, self.once = head, main_grad, num_blocks == 1
        self.dtype = gemm.statistics_dtype(head.dtype)
        widths = [f.hidden.shape[1] for f in head.factors]
        size = head.selection.size
        self.hidden = [head.like.new_zeros(size, w, dtype=self.dtype) if n else None for w, n in zip(widths, needs.hidden, strict=True)]
        make = torch.empty_like if num_blocks else torch.zeros_like
        self.weight = [make(f.weight) if n else None for f, n in zip(head.factors, needs.weight, strict=True)]
        if main_grad is not None:
            self.weight[0] = main_grad
        self.bias = head.like.new_zeros(head.vocab_size, dtype=self.dtype) if needs.bias else None
        self.parts: list[Tensor | None] = []
        self.waits: list[Callable[[], object]] = []

    def open(self, columns: slice) -> None:
        """Begin some vocabulary rows: summed in their place if written once or in fp32, else in fp32 beside it."""
        self.parts = [None if w is None else w[columns] for w in self.weight]
        if not self.once:
            self.parts = [p if p is None or p.dtype == self.dtype else torch.empty_like(p, dtype=self.dtype) for p in self.parts]

    def add(self, d: Tensor, hidden: tuple[Tensor, ...], rows: slice, columns: slice, *, first: bool) -> None:
        """Add the products of a block. The first block of rows writes grad_weight, the others add to it."""
        for total, factor in zip(self.hidden, self.head.factors, strict=True):
            if total is not None:
                gemm.add_grad_hidden_(total[rows], d, factor.weight[columns])
                if columns.stop == self.head.vocab_size:
                    self.waits.append(start_sum(total[rows], self.head.group))  # travels while grad_weight is formed
        for part, whole, x in zip(self.parts, self.weight, hidden, strict=True):
            if part is not None:
                write = gemm.grad_weight_ if first and whole is not self.main_grad else gemm.add_grad_weight_
                write(part, d, x)
        if self.bias is not None:
            self.bias[columns] += d.sum(0, dtype=self.dtype)

    def close(self, columns: slice) -> None:
        """Round the finished vocabulary rows once."""
        for whole, part in zip(self.weight, self.parts, strict=True):
            if whole is not None and part is not None and part.dtype != whole.dtype:
                whole[columns] = part

    def finish(self) -> HeadGradients:
        """The gradients, once every rank's part of grad_hidden has arrived."""
        for wait in self.waits:
            wait()
        hidden = tuple(None if s is None else self.head.selection.spread(s.to(self.head.dtype)) for s in self.hidden)
        return HeadGradients(hidden, tuple(None if w is self.main_grad else w for w in self.weight), self.bias)


def _row_blocks(size: int, block: int, num_saved: int) -> Iterator[slice]:
    """Blocks of rows that lie either all before or all after `num_saved`."""
    yield from blocks(num_saved, block)
    yield from (slice(num_saved + r.start, num_saved + r.stop) for r in blocks(size - num_saved, block))
