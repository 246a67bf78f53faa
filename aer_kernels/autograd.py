"""The three autograd functions: save, launch, return. The work is in `aer_kernels.chunked` and the row backends."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from aer_kernels.chunked import Head, HeadNeeds, backward_logprobs, forward_statistics, policy_gradients
from aer_kernels.objectives.policy import ObjectiveConfig, PolicyInputs, policy_tokens
from aer_kernels.plan import Plan
from aer_kernels.statistics import Logits, RowStatistics


@dataclass(frozen=True)
class Tokens:
    """The n tokens that count, beside the (N, D) hidden states of all."""

    rows: Tensor | None
    """(n,) indices into the N tokens; None: all of them."""
    targets: Tensor
    """(n,) int64"""
    temperature: float | Tensor
    """A float or (n,) fp32."""
    softcap: float | None
    backend: ModuleType

    def logits(self, bias: Tensor | None) -> Logits:
        """How raw products become logits."""
        return Logits(bias, self.temperature, self.softcap)

    def head(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Head:
        """The linear head on these tokens."""
        return Head(hidden, weight, self.rows, self.targets, self.logits(bias), self.backend)

    def spread(self, values: Tensor, total: int) -> Tensor:
        """(n,) values -> (N,), exactly 0 at the tokens that do not count."""
        return values if self.rows is None else values.new_zeros(total).index_copy_(0, self.rows, values)

    def compact(self, values: Tensor) -> Tensor:
        """(N,) -> (n,), contiguous."""
        return values.contiguous() if self.rows is None else values.index_select(0, self.rows)


class FusedLogprobs(torch.autograd.Function):
    """hidden, weight, bias -> logprobs, entropy, logsumexp, each (N,); the logits are recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            stats = forward_statistics(tokens.head(hidden, weight, bias), plan)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias)
        ctx.tokens, ctx.plan, ctx.stats = tokens, plan, stats
        return _outputs(ctx, stats, tokens, hidden.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        if grad_logprobs is None and grad_entropy is None:
            return None, None, None, None, None
        tokens: Tokens = ctx.tokens
        head, stats = tokens.head(hidden, weight, bias), ctx.stats
        grads = [None if g is None else tokens.compact(g) for g in (grad_logprobs, grad_entropy)]
        live = _nonzero_rows(*grads)
        if live.numel() < stats.maximum.numel():
            head, stats = head.take(live), stats.take(live)
            grads = [None if g is None else g.index_select(0, live) for g in grads]
        with torch.autocast(hidden.device.type, enabled=False):
            found = backward_logprobs(head, ctx.plan, stats, grads[0], grads[1], HeadNeeds(*ctx.needs_input_grad[:3]))
        return found.hidden, found.weight, None if found.bias is None else found.bias.to(bias.dtype), None, None


class FusedPolicyLoss(torch.autograd.Function):
    """hidden, weight, bias -> scalar loss; logprobs and entropy (N,) without gradient. The gradients are formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tokens,
        plan: Plan,
        inputs: PolicyInputs,
        config: ObjectiveConfig,
        scale: Tensor,
        needs: HeadNeeds,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            stats, gradients = policy_gradients(tokens.head(hidden, weight, bias), plan, inputs, config, needs)
        loss = policy_tokens(stats.logprobs(), stats.entropy(), inputs, config).loss.sum() * scale
        ctx.save_for_backward(*gradients, scale)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        logprobs, entropy = tokens.spread(stats.logprobs(), hidden.shape[0]), tokens.spread(stats.entropy(), hidden.shape[0])
        ctx.mark_non_differentiable(logprobs, entropy)
        return loss, logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        *gradients, scale = ctx.saved_tensors
        factor = grad_loss * scale
        # Out of place: the graph may be retained for another backward pass.
        scaled = (
            None if g is None else torch.mul(g, factor, out=torch.empty_like(g, dtype=d))
            for g, d in zip(gradients, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None, None, None, None


class LogprobsFromLogits(torch.autograd.Function):
    """logits (N, V) -> logprobs, entropy, logsumexp, each (N,): one pass forward, one backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        stats = RowStatistics.empty(tokens.targets.numel(), torch.promote_types(logits.dtype, torch.float32), logits.device)
        tokens.backend.update_statistics(logits, stats, tokens.targets, tokens.logits(None), 0, tokens.rows)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits)
        ctx.tokens, ctx.stats = tokens, stats
        return _outputs(ctx, stats, tokens, logits.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        (logits,) = ctx.saved_tensors
        tokens: Tokens = ctx.tokens
        if grad_logprobs is None and grad_entropy is None:
            return None, None
        grads = [None if g is None else tokens.compact(g) for g in (grad_logprobs, grad_entropy)]
        out = torch.empty_like(logits) if tokens.rows is None else torch.zeros_like(logits)
        tokens.backend.d_logits(logits, out, ctx.stats, *grads, tokens.targets, tokens.logits(None), 0, tokens.rows)
        return out, None


def _outputs(ctx: Any, stats: RowStatistics, tokens: Tokens, total: int) -> tuple[Tensor, Tensor, Tensor]:
    logsumexp = tokens.spread(stats.logsumexp(), total)
    ctx.mark_non_differentiable(logsumexp)
    return tokens.spread(stats.logprobs(), total), tokens.spread(stats.entropy(), total), logsumexp


def _nonzero_rows(grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> Tensor:
    """Rows with a nonzero upstream gradient: the others are left out of the backward products."""
    given = [g for g in (grad_logprobs, grad_entropy) if g is not None]
    live = given[0] != 0
    for g in given[1:]:
        live = live | (g != 0)
    return live.nonzero().squeeze(1)
