"""The three matrix products of a linear head, with fp32 results whatever the input dtype.

On a GPU the operands stay in their own dtype (tensor cores, fp32 accumulation) and the result is stored in fp32. A CPU has no such
product, so low-precision operands are cast to fp32 a slice of the vocabulary at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CAST_ROWS = 4096
"""Vocabulary rows of a low-precision weight that are held in fp32 at a time on a CPU."""


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of logits and statistics: fp32, or fp64 for fp64 inputs."""
    return torch.promote_types(dtype, torch.float32)


def operand_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Dtype in which d_logits enters the gradient products."""
    return statistics_dtype(dtype) if device.type == "cpu" else dtype


def logits_(out: Tensor, hidden: Tensor, weight: Tensor, *, add: bool = False) -> None:
    """out (n, V) = hidden (n, D) @ weight (V, D).T, or += with `add`; out in the statistics dtype."""
    if hidden.dtype == out.dtype:
        _product_(out, hidden, weight, add)
    elif hidden.device.type != "cpu":
        if add:
            torch.addmm(out, hidden, weight.T, out_dtype=out.dtype, out=out)
        else:
            torch.mm(hidden, weight.T, out_dtype=out.dtype, out=out)
    else:
        full_hidden = hidden.to(out.dtype)
        for v, block in _cast_blocks(weight, out.dtype):
            _product_(out[:, v], full_hidden, block, add)


def _product_(out: Tensor, hidden: Tensor, weight: Tensor, add: bool) -> None:
    if add:
        out.addmm_(hidden, weight.T)
    else:
        torch.mm(hidden, weight.T, out=out)


def grad_hidden(d_logits: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, D) = d_logits (n, V) @ weight (V, D), in `dtype`, rounded once."""
    if d_logits.dtype == weight.dtype:
        return torch.mm(d_logits, weight) if dtype == weight.dtype else torch.mm(d_logits, weight, out_dtype=dtype)
    total = d_logits.new_zeros(d_logits.shape[0], weight.shape[1])
    for v, block in _cast_blocks(weight, d_logits.dtype):
        total.addmm_(d_logits[:, v], block)
    return total.to(dtype)


def grad_hidden_(out: Tensor, d_logits: Tensor, weight: Tensor) -> None:
    """The same into out (n, D)."""
    if out.dtype == d_logits.dtype == weight.dtype:
        torch.mm(d_logits, weight, out=out)
    else:
        out.copy_(grad_hidden(d_logits, weight, out.dtype))


def add_grad_hidden_(out: Tensor, d_logits: Tensor, weight: Tensor) -> None:
    """out (n, D) += d_logits (n, V) @ weight (V, D), accumulated in the statistics dtype of out."""
    if d_logits.dtype != out.dtype:
        torch.addmm(out, d_logits, weight, out_dtype=out.dtype, out=out)
    elif weight.dtype == out.dtype:
        out.addmm_(d_logits, weight)
    else:
        for v, block in _cast_blocks(weight, out.dtype):
            out.addmm_(d_logits[:, v], block)


def grad_weight_(out: Tensor, d_logits: Tensor, hidden: Tensor) -> None:
    """out (V, D) = d_logits (n, V).T @ hidden (n, D), rounded once to the dtype of out."""
    if d_logits.dtype == hidden.dtype:
        if out.dtype == hidden.dtype:
            torch.mm(d_logits.T, hidden, out=out)
        else:
            torch.mm(d_logits.T, hidden, out_dtype=out.dtype, out=out)
    elif out.dtype == d_logits.dtype:
        torch.mm(d_logits.T, hidden.to(out.dtype), out=out)
    else:
        full_hidden = hidden.to(d_logits.dtype)
        for start in range(0, out.shape[0], CAST_ROWS):
            v = slice(start, min(start + CAST_ROWS, out.shape[0]))
            out[v] = d_logits[:, v].T @ full_hidden


def add_grad_weight_(out: Tensor, d_logits: Tensor, hidden: Tensor) -> None:
    """out (V, D) += d_logits (n, V).T @ hidden (n, D), accumulated in the statistics dtype of out."""
    if d_logits.dtype != out.dtype:
        torch.addmm(out, d_logits.T, hidden, out_dtype=out.dtype, out=out)
    else:
        out.addmm_(d_logits.T, hidden.to(out.dtype))


def _cast_blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, weight.shape[0], CAST_ROWS):
        v = slice(start, min(start + CAST_ROWS, weight.shape[0]))
        yield v, weight[v].to(dtype)
