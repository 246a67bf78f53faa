"""`aer_kernels::logprobs` and its backward pass, which recomputes the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aer_kernels.blocked.logprobs import SavedLogits, Upstream, backward_logprobs, forward_statistics
from aer_kernels.blocked.memory import padded_width
from aer_kernels.blocked.selection import Selection, select
from aer_kernels.operators.arguments import (
    GRADIENTS,
    HEAD,
    NUM_GRADIENTS,
    NUM_HEAD,
    HeadArguments,
    differentiable,
    fake_gradients,
    flat_gradients,
    head_of,
    logprobs_plan,
    needs_of,
    num_statistics,
    selections,
    started,
    token_dtype,
    without_autocast,
)
from aer_kernels.statistics import RowStatistics


@torch.library.custom_op(
    "aer_kernels::logprobs",
    mutates_args=(),
    schema=f"({HEAD}, Tensor? main_grad) -> (Tensor logprobs, Tensor entropy, Tensor logsumexp, Tensor stats, Tensor cache)",
)
def logprobs(*args: Any) -> tuple[Tensor, ...]:
    """logprobs, entropy, logsumexp (N,), statistics (4 or 5, N), and the logits (C, >= V) that are kept for the backward pass."""
    a = started(HeadArguments(*args[:NUM_HEAD]))
    with without_autocast(a.hidden):
        needs = needs_of(a)
        chosen, _ = selections(a, a.keep, a.keep)
        cache = a.hidden.new_empty(_cached_rows(a), padded_width(a.weight.shape[0]), dtype=token_dtype(a))
        stats = forward_statistics(head_of(a, chosen), logprobs_plan(a, chosen.size, needs if needs.any() else None), cache)
        outputs = (chosen.spread(x).masked_fill(~a.keep, 0.0) for x in (stats.logprobs(), stats.entropy(), stats.logsumexp()))
        return *outputs, torch.stack([chosen.spread(x) for x in stats.vectors()]), cache


@logprobs.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    a = HeadArguments(*args[:NUM_HEAD])
    token = a.hidden.new_empty(a.targets.shape, dtype=token_dtype(a))
    cache = token.new_empty(_cached_rows(a), padded_width(a.weight.shape[0]))
    return token, torch.empty_like(token), torch.empty_like(token), token.new_empty(num_statistics(a), *token.shape), cache


def _cached_rows(a: HeadArguments) -> int:
    """Rows whose logits are kept. A function of shapes alone: the operator's outputs have fixed shapes."""
    return 0 if a.memory_budget is None else logprobs_plan(a, a.targets.numel(), needs_of(a)).cached_rows


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a = HeadArguments(*inputs[:NUM_HEAD])
    tensors = (*differentiable(a), a.targets, a.keep, a.token_temperature, a.floor)
    ctx.save_for_backward(*tensors, inputs[-1], *output[3:])
    ctx.options = a[len(tensors) :]
    ctx.num_inputs = len(inputs)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[2:])


def _differentiate(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_logprobs is None and grad_entropy is None:
        return (None,) * ctx.num_inputs
    *tensors, main_grad, stats, cache = ctx.saved_tensors
    a = HeadArguments(*tensors, *ctx.options)
    found = logprobs_backward(*a, stats, cache, grad_logprobs, grad_entropy, main_grad)
    returned = (a.needs[0], a.needs[1] and main_grad is None, *a.needs[2:])
    wanted = (g if given else None for g, given in zip(found, returned, strict=True))
    return *wanted, *(None,) * (ctx.num_inputs - NUM_GRADIENTS)


logprobs.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op(
    "aer_kernels::logprobs_backward",
    mutates_args=("main_grad",),
    schema=f"({HEAD}, Tensor stats, Tensor cache, Tensor? grad_logprobs, Tensor? grad_entropy, Tensor(a!)? main_grad) -> ({GRADIENTS})",
)
def logprobs_backward(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of the head, (0,) where not wanted; that of the weight is added to main_grad where there is one."""
    a, (packed, cache, grad_logprobs, grad_entropy, main_grad) = started(HeadArguments(*args[:NUM_HEAD])), args[NUM_HEAD:]
    with without_autocast(a.hidden):
        needs = needs_of(a)
        upstream = [None if g is None else g.to(token_dtype(a)).masked_fill(~a.keep, 0.0) for g in (grad_logprobs, grad_entropy)]
        chosen, saved = _rows(a, upstream, cache)
        stats = RowStatistics(*(chosen.take(x).contiguous() for x in packed))
        grads = [None if g is None else chosen.coefficients(g) for g in upstream]
        start = Upstream(stats, grads[0], grads[1], saved)
        found = backward_logprobs(head_of(a, chosen), logprobs_plan(a, chosen.size, needs), start, needs, main_grad)
        if found.bias is not None and a.bias is not None:
            found = found._replace(bias=found.bias.to(a.bias.dtype))
        return flat_gradients(found, a.hidden)


@logprobs_backward.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    a = HeadArguments(*args[:NUM_HEAD])
    found = [*fake_gradients(a, a.weight.dtype, a.hidden.dtype if a.bias is None else a.bias.dtype)]
    if args[-1] is not None:
        found[1] = a.hidden.new_empty(0)
    return tuple(found)


def _rows(a: HeadArguments, upstream: list[Tensor | None], cache: Tensor) -> tuple[Selection, SavedLogits | None]:
    """Rows with an upstream gradient, those first whose logits were kept: they are the first ones that the forward pass computed."""
    live = torch.zeros_like(a.keep)
    for g in upstream:
        live = live if g is None else live | (g != 0)
    if cache.shape[0] == 0:
        return selections(a, live, live)[0], None
    if not a.select_rows:
        chosen = selections(a, live, live)[0]
        return chosen, SavedLogits(cache, torch.arange(min(cache.shape[0], chosen.size), device=cache.device))
    position = torch.cumsum(a.keep, 0) - 1
    kept, others = select(live & (position < cache.shape[0]), live)
    return kept.then(others), SavedLogits(cache, kept.take(position))
