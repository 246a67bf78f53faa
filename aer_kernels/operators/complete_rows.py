"""`aer_kernels::floors` and `aer_kernels::moments`: what needs complete rows of logits, block by block. Nothing is differentiated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from aer_kernels.blocked.factors import Head, HeadNeeds
from aer_kernels.blocked.gemm import statistics_dtype
from aer_kernels.blocked.memory import block_of, blocks, scratch_like
from aer_kernels.operators.arguments import (
    HEAD,
    NUM_HEAD,
    HeadArguments,
    head_of,
    policy_plan,
    selections,
    started,
    token_dtype,
    without_autocast,
)
from aer_kernels.reference import temper
from aer_kernels.statistics import RowStatistics, Tempering

MIN_P_MARGIN = 1e-4
"""Nats below the floor of min-p: the rounding of another pass must not leave out a token that is just likely enough."""


@torch.library.custom_op("aer_kernels::floors", mutates_args=(), schema=f"({HEAD}, str kind, float wanted, bool crossing) -> Tensor")
def floors(*args: Any) -> Tensor:
    """(N,) floors in nats, -inf at tokens that do not count."""
    a, (kind, wanted, crossing) = started(HeadArguments(*args[:NUM_HEAD])), args[NUM_HEAD:]
    with without_autocast(a.hidden):
        chosen, _ = selections(a, a.keep, a.keep)
        found = a.hidden.new_empty(chosen.size, dtype=token_dtype(a))
        head = head_of(a, chosen)
        for rows, raw in _complete_rows(a, head):
            found[rows] = _floors_of(raw, head.tempering.part(rows), head.backend, kind, wanted, crossing)
        return chosen.spread(found).masked_fill(~a.keep, -math.inf)


@floors.register_fake
def _(*args: Any) -> Tensor:
    a = HeadArguments(*args[:NUM_HEAD])
    return a.hidden.new_empty(a.targets.shape, dtype=token_dtype(a))


@torch.library.custom_op("aer_kernels::moments", mutates_args=(), schema=f"({HEAD}) -> Tensor")
def moments(*args: Any) -> Tensor:
    """(6, N): log-prob, entropy, logsumexp, largest probability, sum p^2, sum p^2 (log p + H); 0 at tokens that do not count."""
    a = started(HeadArguments(*args))
    with without_autocast(a.hidden):
        chosen, _ = selections(a, a.keep, a.keep)
        head, found = head_of(a, chosen), a.hidden.new_empty(6, chosen.size, dtype=token_dtype(a))
        for rows, raw in _complete_rows(a, head):
            tempering = head.tempering.part(rows)
            stats = RowStatistics.empty(raw.shape[0], raw.dtype, raw.device)
            head.backend.update_statistics(raw, stats, head.targets[rows], tempering, 0)
            squares = head.backend.row_moments(raw, stats, tempering)
            found[:, rows] = torch.stack([stats.logprobs(), stats.entropy(), stats.logsumexp(), 1.0 / stats.sum_exp, *squares])
        return torch.stack([chosen.spread(x) for x in found]).masked_fill(~a.keep, 0.0)


@moments.register_fake
def _(*args: Any) -> Tensor:
    a = HeadArguments(*args)
    return a.hidden.new_empty(6, *a.targets.shape, dtype=token_dtype(a))


def _complete_rows(a: HeadArguments, head: Head) -> Iterator[tuple[slice, Tensor]]:
    """The raw logits of all rows of a head, block by block, in the same memory."""
    size = head.selection.size
    plan = policy_plan(a, size, HeadNeeds((False,), (False,), False))
    flat = scratch_like(min(plan.row_block, size), head.vocab_size, statistics_dtype(head.dtype), head.like)
    for rows in blocks(size, plan.row_block):
        raw = block_of(flat, rows.stop - rows.start, head.vocab_size)
        yield rows, head.logits_(raw, head.hidden_of(rows), slice(0, head.vocab_size))


def _floors_of(raw: Tensor, tempering: Tempering, backend: ModuleType, kind: str, wanted: float, crossing: bool) -> Tensor:
    if kind == "min_p":
        return temper(raw, tempering.bias, tempering.temperature, tempering.softcap).amax(1) + (math.log(wanted) - MIN_P_MARGIN)
    if kind == "top_k" and wanted >= raw.shape[1]:
        return raw.new_full((raw.shape[0],), -math.inf)
    return backend.row_floors(raw, tempering, wanted, count=kind == "top_k", crossing=crossing)
