"""`aer_kernels::policy_loss`: the loss and, formed in the same pass, its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aer_kernels.blocked.logprobs import forward_statistics
from aer_kernels.blocked.policy_loss import policy_gradients, stored_dtype
from aer_kernels.objectives.policy import METRICS, PolicyInputs, may_have_gradient, policy_metrics, policy_tokens
from aer_kernels.operators.arguments import (
    GRADIENTS,
    HEAD,
    NUM_GRADIENTS,
    NUM_HEAD,
    POLICY,
    HeadArguments,
    PolicyArguments,
    differentiable,
    fake_gradients,
    flat_gradients,
    head_of,
    logprobs_plan,
    needs_of,
    policy_plan,
    selections,
    started,
    token_dtype,
    without_autocast,
)
from aer_kernels.operators.scaled import add_scaled_, handed_out


@torch.library.custom_op(
    "aer_kernels::policy_loss",
    mutates_args=(),
    schema=f"({HEAD}, {POLICY}, Tensor? main_grad)"
    f" -> (Tensor loss, Tensor logprobs, Tensor entropy, Tensor metrics, Tensor dropped, {GRADIENTS})",
)
def policy_loss(*args: Any) -> tuple[Tensor, ...]:
    """Loss (0-dim), logprobs and entropy (N,), METRICS, bound on the dropped gradient (0-dim), gradients in the dtype that stores them."""
    a, policy = HeadArguments(*args[:NUM_HEAD]), PolicyArguments(*args[NUM_HEAD:-1])
    with without_autocast(a.hidden):
        return _evaluate(started(a), policy)


def _evaluate(a: HeadArguments, policy: PolicyArguments) -> tuple[Tensor, ...]:
    surrogate = policy.surrogate
    inputs, scale, rest = _scaled_inputs(a, policy)
    needs = needs_of(a)
    if needs.any():
        live, idle = selections(a, a.keep & may_have_gradient(inputs), a.keep)
    else:
        idle, live = selections(a, a.keep, a.keep)
    free_to_ask = a.hidden.device.type == "cpu" and a.select_rows and not a.batch_invariant
    row_tol = 0.0 if policy.row_tol is None and free_to_ask else policy.row_tol
    tolerance = None if row_tol is None else 2.0 * row_tol * scale
    taken = inputs.map(live.take)
    taken = taken._replace(weights=live.coefficients(inputs.weights), entropy_weights=live.coefficients(inputs.entropy_weights))
    found = policy_gradients(head_of(a, live), policy_plan(a, live.size, needs), taken, surrogate, needs, tolerance)
    logprobs, entropy = live.spread(found.stats.logprobs()), live.spread(found.stats.entropy())
    if idle.num:
        stats = forward_statistics(head_of(a, idle), logprobs_plan(a, idle.size, None))
        logprobs, entropy = logprobs + idle.spread(stats.logprobs()), entropy + idle.spread(stats.entropy())
    logprobs, entropy = logprobs.masked_fill(~a.keep, 0.0), entropy.masked_fill(~a.keep, 0.0)
    tokens = policy_tokens(logprobs, entropy, inputs, surrogate)
    loss, metrics = tokens.loss.masked_fill(~a.keep, 0.0).sum(), policy_metrics(tokens, entropy, inputs, a.keep)
    return loss * rest, logprobs, entropy, metrics, found.dropped * rest, *flat_gradients(found.gradients, a.hidden)


def _scaled_inputs(a: HeadArguments, policy: PolicyArguments) -> tuple[PolicyInputs, Tensor, Tensor]:
    """Inputs of the objective with the scale in them, that scale, and what of it is applied after the products instead.

    The scale enters before d_logits are rounded, so that gradients are rounded once; in fp16 it would make them underflow.
    """
    apart = _scales_afterwards(a.hidden.dtype)
    scale, rest = (torch.ones_like(policy.scale), policy.scale) if apart else (policy.scale, torch.ones_like(policy.scale))
    return policy.inputs._replace(weights=policy.weights * scale, entropy_weights=policy.entropy_weights * scale), scale, rest


def _scales_afterwards(dtype: torch.dtype) -> bool:
    return dtype == torch.float16


@policy_loss.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    a = HeadArguments(*args[:NUM_HEAD])
    token = a.hidden.new_empty(a.targets.shape, dtype=token_dtype(a))
    gradients = fake_gradients(a, stored_dtype(a.hidden.dtype), token.dtype)
    metrics = token.new_empty(len(METRICS), dtype=torch.float64)
    return token.new_empty(()), token, torch.empty_like(token), metrics, token.new_empty(()), *gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a, policy = HeadArguments(*inputs[:NUM_HEAD]), PolicyArguments(*inputs[NUM_HEAD:-1])
    ctx.save_for_backward(*output[-NUM_GRADIENTS:], policy.scale, inputs[-1])
    ctx.dtypes = [None if x is None else x.dtype for x in differentiable(a)]
    ctx.needs, ctx.impl, ctx.num_inputs = a.needs, a.impl, len(inputs)
    ctx.scales_afterwards = _scales_afterwards(a.hidden.dtype)
    ctx.set_materialize_grads(False)  # or zeros are made for every gradient that is stored
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * ctx.num_inputs
    *gradients, scale, main_grad = ctx.saved_tensors
    factor = grad_loss * scale if ctx.scales_afterwards else grad_loss
    found: list[Tensor | None] = []
    for i, (gradient, dtype, needed) in enumerate(zip(gradients, ctx.dtypes, ctx.needs, strict=True)):
        to_main_grad = i == 1 and main_grad is not None
        if needed and to_main_grad:
            add_scaled_(main_grad, gradient, factor, ctx.impl)
        found.append(handed_out(gradient, factor, dtype, ctx.impl) if needed and not to_main_grad else None)
    return *found, *(None,) * (ctx.num_inputs - NUM_GRADIENTS)


policy_loss.register_autograd(_differentiate, setup_context=_save)
