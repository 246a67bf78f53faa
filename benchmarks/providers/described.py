"""The chunked log-prob functions of TRL and prime-rl, written from their description: forward in chunks, logits recomputed backward.

Both return an entropy without a gradient. TRL walks over the vocabulary with all tokens at once and multiplies gradients in fp32;
prime-rl walks over tokens and vocabulary and sums grad_weight in the dtype of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.providers.base import Provider
from benchmarks.workloads import Case

COLUMNS = 8192


class ChunkedLogprobs(torch.autograd.Function):
    """Log-probs and (detached) entropy in blocks of rows x COLUMNS."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int, fp32_products: bool) -> tuple[Tensor, Tensor]:
        stat = torch.promote_types(hidden.dtype, torch.float32)
        own, lse, entropy = (hidden.new_empty(len(hidden), dtype=stat) for _ in range(3))
        for r in _slices(len(hidden), rows):
            m = hidden.new_full((len(hidden[r]),), -torch.inf, dtype=stat)
            s, t = torch.zeros_like(m), torch.zeros_like(m)
            for v in _slices(len(weight), COLUMNS):
                z = (hidden[r] @ weight[v].T).to(stat)
                new = torch.maximum(m, z.amax(1))
                p = (z - new[:, None]).exp()
                decay = (m - new).exp()
                s, t, m = s * decay + p.sum(1), t * decay + (p * z).sum(1), new
                inside = (targets[r] >= v.start) & (targets[r] < v.stop)
                picked = z.gather(1, (targets[r] - v.start).clamp(0, z.shape[1] - 1)[:, None])[:, 0]
                own[r] = torch.where(inside, picked, own[r])
            lse[r] = m + s.log()
            entropy[r] = lse[r] - t / s
        ctx.save_for_backward(hidden, weight, targets, lse)
        ctx.rows, ctx.fp32_products = rows, fp32_products
        ctx.mark_non_differentiable(entropy)
        return own - lse, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, lse = ctx.saved_tensors
        dtype = lse.dtype if ctx.fp32_products else hidden.dtype
        grad_hidden = torch.zeros_like(hidden, dtype=lse.dtype)
        grad_weight = torch.zeros_like(weight, dtype=lse.dtype if ctx.fp32_products else weight.dtype)
        for r in _slices(len(hidden), ctx.rows):
            for v in _slices(len(weight), COLUMNS):
                d = (hidden[r] @ weight[v].T).to(lse.dtype).sub_(lse[r, None]).exp_().mul_(-grad[r, None])
                inside = (targets[r] >= v.start) & (targets[r] < v.stop)
                column = (targets[r] - v.start).clamp(0, d.shape[1] - 1)[:, None]
                d.scatter_add_(1, column, torch.where(inside, grad[r], 0.0)[:, None])
                d = d.to(dtype)
                grad_hidden[r] += d @ weight[v].to(dtype)
                grad_weight[v] += d.T @ hidden[r].to(dtype)
        return grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype), None, None, None


def _slices(total: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]


def _tokens(case: Case, *, all_rows: bool) -> Callable[[], tuple[Tensor, Tensor]]:
    rows = len(case.hidden) if all_rows else 8192
    return lambda: ChunkedLogprobs.apply(case.hidden, case.weight, case.targets, rows, all_rows)


TRL = Provider(
    "TRL's approach", None, partial(_tokens, all_rows=True), differs="written from its description; entropy without gradient; fp32 products"
)
PRIME_RL = Provider(
    "prime-rl's approach",
    None,
    partial(_tokens, all_rows=False),
    differs="written from its description; entropy without gradient; grad_weight summed in the weight's dtype",
)
