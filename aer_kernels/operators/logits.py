"""`aer_kernels::logits_statistics`: one read of given logits forward, one write backward, never a device read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aer_kernels.backends import row_backend
from aer_kernels.blocked.gemm import statistics_dtype
from aer_kernels.operators.arguments import LOGITS, NUM_LOGITS, LogitsArguments, num_statistics
from aer_kernels.statistics import RowStatistics, Tempering

UPSTREAM = "Tensor stats, Tensor? grad_logprobs, Tensor? grad_entropy"


@torch.library.custom_op(
    "aer_kernels::logits_statistics",
    mutates_args=(),
    schema=f"({LOGITS}, bool overwrite) -> (Tensor logprobs, Tensor entropy, Tensor logsumexp, Tensor stats)",
)
def logits_statistics(*args: Any) -> tuple[Tensor, ...]:
    """logprobs, entropy, logsumexp (N,) and statistics (4 or 5, N) of the rows that count."""
    a = LogitsArguments(*args[:NUM_LOGITS])
    stats = RowStatistics.empty(a.targets.numel(), statistics_dtype(a.logits.dtype), a.logits.device, num_statistics(a))
    row_backend(a.impl, a.logits.device).update_statistics(a.logits, stats, a.targets, _tempering(a), 0, a.keep)
    outputs = (x.masked_fill(~a.keep, 0.0) for x in (stats.logprobs(), stats.entropy(), stats.logsumexp()))
    return *outputs, stats.packed().masked_fill(~a.keep, 0.0)


@logits_statistics.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    a = LogitsArguments(*args[:NUM_LOGITS])
    token = a.logits.new_empty(a.targets.shape, dtype=statistics_dtype(a.logits.dtype))
    return token, torch.empty_like(token), torch.empty_like(token), token.new_empty(num_statistics(a), *token.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a = LogitsArguments(*inputs[:NUM_LOGITS])
    ctx.save_for_backward(a.logits, a.targets, a.keep, a.token_temperature, a.floor, output[3])
    ctx.options, ctx.overwrite = (a.temperature, a.softcap, a.entropy_floor, a.impl), inputs[-1]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[2:])


def _differentiate(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_logprobs is None and grad_entropy is None:
        return (None,) * (NUM_LOGITS + 1)
    *tensors, stats = ctx.saved_tensors
    args = (*tensors, *ctx.options, stats, grad_logprobs, grad_entropy)
    if ctx.overwrite:
        overwrite_logits(*args)
    return tensors[0] if ctx.overwrite else d_logits(*args), *(None,) * NUM_LOGITS


logits_statistics.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("aer_kernels::d_logits", mutates_args=(), schema=f"({LOGITS}, {UPSTREAM}) -> Tensor")
def d_logits(*args: Any) -> Tensor:
    """Gradient of the logits, 0 in the rows that do not count."""
    out = torch.empty_like(args[0])
    _write(out, *args)
    return out


@d_logits.register_fake
def _(*args: Any) -> Tensor:
    return torch.empty_like(args[0])


@torch.library.custom_op(
    "aer_kernels::overwrite_logits",
    mutates_args=("logits",),
    schema=f"({LOGITS.replace('Tensor logits', 'Tensor(a!) logits')}, {UPSTREAM}) -> ()",
)
def overwrite_logits(*args: Any) -> None:
    """The same over the logits."""
    _write(args[0], *args)


@overwrite_logits.register_fake
def _(*args: Any) -> None:
    return None


def _write(out: Tensor, *args: Any) -> None:
    a, (packed, grad_logprobs, grad_entropy) = LogitsArguments(*args[:NUM_LOGITS]), args[NUM_LOGITS:]
    grads = [None if g is None else g.to(packed.dtype).contiguous() for g in (grad_logprobs, grad_entropy)]
    stats = RowStatistics(*packed.unbind(0))
    row_backend(a.impl, out.device).d_logits(a.logits, out, stats, grads[0], grads[1], a.targets, _tempering(a), 0, a.keep)


def _tempering(a: LogitsArguments) -> Tempering:
    temperature = a.temperature if a.token_temperature is None else a.token_temperature
    return Tempering(None, temperature, a.softcap, a.floor, a.entropy_floor)
