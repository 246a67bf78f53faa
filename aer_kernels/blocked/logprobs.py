"""Log-probs and entropy in blocks: statistics forward, logits recomputed backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aer_kernels.blocked import gemm
from aer_kernels.blocked.head import Head, HeadGradients, HeadNeeds
from aer_kernels.blocked.memory import BlockMemory, block_of, blocks, logit_blocks, scratch_like
from aer_kernels.blocked.parallel import merge_statistics, start_sum
from aer_kernels.plan import Plan
from aer_kernels.statistics import RowStatistics


def forward_statistics(head: Head, plan: Plan, cache: Tensor | None = None) -> RowStatistics:
    """Softmax statistics of every row, 2 n*V*D FLOPs. The raw logits of the first rows are kept in `cache` (C, >= V) where there is one."""
    dtype = gemm.statistics_dtype(head.dtype)
    size, vocab = head.selection.size, head.vocab_size
    stats = RowStatistics.empty(size, dtype, head.like.device)
    flat = scratch_like(min(plan.row_block, size), min(plan.vocab_block, vocab), dtype, head.like)
    num_cached = 0 if cache is None else min(cache.shape[0], size)
    for r in _row_blocks(size, plan.row_block, num_cached):
        hidden = head.hidden_of(r)
        for v in blocks(vocab, plan.vocab_block):
            kept = cache is not None and r.stop <= num_cached
            raw = cache[r, v] if kept else block_of(flat, r.stop - r.start, v.stop - v.start)  # type: ignore[index]
            head.logits_(raw, hidden, v)
            head.backend.update_statistics(raw, stats.part(r), head.targets[r], head.logits.part(r), v.start)
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


def backward_logprobs(
    head: Head,
    plan: Plan,
    stats: RowStatistics,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    needs: HeadNeeds,
    saved: SavedLogits | None = None,
    main_grad: Tensor | None = None,
) -> HeadGradients:
    """Gradients of sum(grad_logprobs * logprobs + grad_entropy * entropy), 4 n*V*D FLOPs and 2 for rows whose logits are not saved.

    main_grad: (V, D) fp32 to which grad_weight of the head is added; it is not returned then.
    """
    dtype = gemm.statistics_dtype(head.dtype)
    size, vocab = head.selection.size, head.vocab_size
    rows = list(_row_blocks(size, plan.grad_rows, 0 if saved is None else saved.rows.numel()))
    once = len(rows) == 1
    widths = [f.hidden.shape[1] for f in head.factors]
    sums = [head.like.new_zeros(size, width, dtype=dtype) if n else None for width, n in zip(widths, needs.hidden, strict=True)]
    make = torch.empty_like if once else torch.zeros_like
    weights = [make(f.weight) if n else None for f, n in zip(head.factors, needs.weight, strict=True)]
    if main_grad is not None:
        weights[0] = main_grad
    grad_bias = head.like.new_zeros(vocab, dtype=dtype) if needs.bias else None
    memory = BlockMemory(min(plan.grad_rows, size), min(plan.grad_columns, vocab), plan.tail_rows, head.like)
    waits = []
    gathered = [head.hidden_of(r) for r in rows] if once else None
    for v in blocks(vocab, plan.grad_columns):
        parts = [_weight_part(w, v, once, dtype) for w in weights]
        for r in rows:
            hidden = head.hidden_of(r) if gathered is None else gathered[0]
            d = memory.d_logits(r.stop - r.start, v.stop - v.start)
            for inner in logit_blocks(d.shape[0], plan.row_block, plan.tail_rows) if not memory.in_place else [slice(0, d.shape[0])]:
                outer = slice(r.start + inner.start, r.start + inner.stop)
                raw = memory.logits(d[inner])
                if saved is not None and outer.stop <= saved.rows.numel():
                    saved.load_(raw, outer, v)
                else:
                    head.logits_(raw, tuple(x[inner] for x in hidden), v)
                grads = (None if g is None else g[outer] for g in (grad_logprobs, grad_entropy))
                head.backend.d_logits(raw, d[inner], stats.part(outer), *grads, head.targets[outer], head.logits.part(outer), v.start)
            for total, factor in zip(sums, head.factors, strict=True):
                if total is not None:
                    gemm.add_grad_hidden_(total[r], d, factor.weight[v])
                    if v.stop == vocab:
                        waits.append(start_sum(total[r], head.group))  # travels while grad_weight is formed
            for part, whole, x in zip(parts, weights, hidden, strict=True):
                if part is not None:
                    write = gemm.grad_weight_ if once and whole is not main_grad else gemm.add_grad_weight_
                    write(part, d, x)
            if grad_bias is not None:
                grad_bias[v] += d.sum(0, dtype=dtype)
        for whole, part in zip(weights, parts, strict=True):
            if whole is not None and part is not None and part.dtype != whole.dtype:
                whole[v] = part
    for wait in waits:
        wait()
    if main_grad is not None:
        weights[0] = None
    spread = tuple(None if s is None else head.selection.spread(s.to(head.dtype)) for s in sums)
    return HeadGradients(spread, tuple(weights), grad_bias)


def _weight_part(weight: Tensor | None, columns: slice, once: bool, dtype: torch.dtype) -> Tensor | None:
    """Where grad_weight of some vocabulary rows is summed: in its place if it is written once or in fp32, else in fp32 beside it."""
    if weight is None:
        return None
    part = weight[columns]
    return part if once or part.dtype == dtype else torch.zeros_like(part, dtype=dtype)


def _row_blocks(size: int, block: int, num_saved: int) -> Iterator[slice]:
    """Blocks of rows that lie either all before or all after `num_saved`."""
    yield from blocks(num_saved, block)
    yield from (slice(num_saved + r.start, num_saved + r.stop) for r in blocks(size - num_saved, block))
