"""The chunked log-prob function of prime-rl, written from its description: forward in chunks, logits recomputed backward.

It walks over tokens and vocabulary, returns an entropy without a gradient, and sums grad_weight in the dtype of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.providers.base import Provider
from benchmarks.workloads import Case

ROWS, COLUMNS = 8192, 8192


class ChunkedLogprobs(torch.autograd.Function):
    """Log-probs and (detached) entropy in blocks of ROWS x COLUMNS."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        stat = torch.promote_types(hidden.dtype, torch.float32)
        own, lse, entropy = (hidden.new_empty(len(hidden), dtype=stat) for _ in range(3))
        for r in _slices(len(hidden), ROWS):
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
        ctx.mark_non_differentiable(entropy)
        return own - lse, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, lse = ctx.saved_tensors
        grad_hidden, grad_weight = torch.zeros_like(hidden, dtype=lse.dtype), torch.zeros_like(weight)
        for r in _slices(len(hidden), ROWS):
            for v in _slices(len(weight), COLUMNS):
                d = (hidden[r] @ weight[v].T).to(lse.dtype).sub_(lse[r, None]).exp_().mul_(-grad[r, None])
                inside = (targets[r] >= v.start) & (targets[r] < v.stop)
                column = (targets[r] - v.start).clamp(0, d.shape[1] - 1)[:, None]
                d.scatter_add_(1, column, torch.where(inside, grad[r], 0.0)[:, None])
                d = d.to(hidden.dtype)
                grad_hidden[r] += d @ weight[v]
                grad_weight[v] += d.T @ hidden[r]
        return grad_hidden.to(hidden.dtype), grad_weight, None


def _slices(total: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]


def _tokens(case: Case) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: ChunkedLogprobs.apply(case.hidden, case.weight, case.targets)


PRIME_RL = Provider(
    "prime-rl's approach",
    None,
    _tokens,
    differs="written from its description; entropy without gradient; grad_weight summed in the weight's dtype",
)
