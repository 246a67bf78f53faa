"""Arguments of the operators, once: a NamedTuple is both what Python unpacks and the schema that PyTorch registers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from aer_kernels.backends import row_backend
from aer_kernels.blocked.factors import Factor, Head, HeadGradients, HeadNeeds
from aer_kernels.blocked.gemm import statistics_dtype
from aer_kernels.blocked.selection import Selection, everything, nothing, select
from aer_kernels.objectives.policy import PolicyInputs, Surrogate
from aer_kernels.plan import Plan, invariant_rows, plan_logprobs, plan_policy_loss
from aer_kernels.statistics import Tempering

_SCHEMA_TYPES = {"Tensor": "Tensor", "float": "float", "int": "int", "bool": "bool", "str": "str", "list[bool]": "bool[]"}


class HeadArguments(NamedTuple):
    """What every operator on a linear head takes; (N,) for all tokens, so that shapes do not depend on the data."""

    hidden: Tensor
    weight: Tensor
    lora_hidden: Tensor | None
    """(N, r), scaled: the logits get lora_hidden @ lora_weight.T more."""
    lora_weight: Tensor | None
    """(V, r)"""
    bias: Tensor | None
    targets: Tensor
    """(N,) int64, counted from the first vocabulary row that is here."""
    keep: Tensor
    """(N,) bool: the tokens that count."""
    token_temperature: Tensor | None
    """(N,), or None for `temperature`."""
    floor: Tensor | None
    """(N,): logits below it are left out."""
    temperature: float
    softcap: float | None
    entropy_floor: bool
    """Whether the floor is that of the entropy alone."""
    impl: str
    memory_budget: int | None
    select_rows: bool | None
    batch_invariant: bool
    group: str | None
    needs: list[bool]
    """Gradients wanted of hidden, weight, lora_hidden, lora_weight, bias."""


class PolicyArguments(NamedTuple):
    """What the policy loss takes beside the head; (N,) tensors, finite at tokens that do not count."""

    advantages: Tensor
    weights: Tensor
    entropy_weights: Tensor
    old_logprobs: Tensor | None
    ref_logprobs: Tensor | None
    kl_coef: Tensor | None
    rollout_logprobs: Tensor | None
    kind: str
    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl: str
    rollout_cap: float
    scale: Tensor
    """0-dim factor of weights and entropy_weights."""
    row_tol: float | None

    @property
    def inputs(self) -> PolicyInputs:
        return PolicyInputs(*self[:7])

    @property
    def surrogate(self) -> Surrogate:
        return Surrogate(*self[7:13])  # type: ignore[arg-type]


class LogitsArguments(NamedTuple):
    """What the operators on given logits take."""

    logits: Tensor
    targets: Tensor
    keep: Tensor
    token_temperature: Tensor | None
    floor: Tensor | None
    temperature: float
    softcap: float | None
    entropy_floor: bool
    impl: str


def schema(arguments: type) -> str:
    """The fields of a NamedTuple in the operators' schema language."""
    given = []
    for name, annotation in arguments.__annotations__.items():
        base, optional, _ = str(getattr(annotation, "__forward_arg__", annotation)).partition(" | None")
        given.append(f"{_SCHEMA_TYPES[base]}{'?' if optional else ''} {name}")
    return ", ".join(given)


HEAD, POLICY, LOGITS = schema(HeadArguments), schema(PolicyArguments), schema(LogitsArguments)
NUM_HEAD, NUM_LOGITS = len(HeadArguments._fields), len(LogitsArguments._fields)
NUM_GRADIENTS = 5
GRADIENTS = "Tensor grad_hidden, Tensor grad_weight, Tensor grad_lora_hidden, Tensor grad_lora_weight, Tensor grad_bias"


def needs_of(a: HeadArguments) -> HeadNeeds:
    """Gradients wanted, by factor."""
    hidden, weight, lora_hidden, lora_weight, bias = a.needs
    factors = 1 if a.lora_hidden is None else 2
    return HeadNeeds((hidden, lora_hidden)[:factors], (weight, lora_weight)[:factors], bias)


def head_of(a: HeadArguments, selection: Selection) -> Head:
    """The head on some of the tokens."""
    factors = [Factor(a.hidden, a.weight)]
    if a.lora_hidden is not None and a.lora_weight is not None:
        factors.append(Factor(a.lora_hidden, a.lora_weight))
    temperature = a.temperature if a.token_temperature is None else selection.take(a.token_temperature)
    floor = None if a.floor is None else selection.take(a.floor)
    tempering = Tempering(a.bias, temperature, a.softcap, floor, a.entropy_floor)
    return Head(tuple(factors), selection, selection.take(a.targets), tempering, row_backend(a.impl, a.hidden.device), a.group)


def started(a: HeadArguments) -> HeadArguments:
    """Decides at run time whether rows are selected. Where all enter the products, those that do not count must not bring a NaN."""
    select_rows = not _is_captured(a.hidden.device) if a.select_rows is None else a.select_rows
    a = a._replace(select_rows=select_rows)
    if select_rows:
        return a
    keep = a.keep.unsqueeze(1)
    lora = None if a.lora_hidden is None else torch.where(keep, a.lora_hidden, 0.0)
    return a._replace(hidden=torch.where(keep, a.hidden, 0.0), lora_hidden=lora)


def _is_captured(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, in which the host cannot learn how many rows there are."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def selections(a: HeadArguments, first: Tensor, second: Tensor) -> tuple[Selection, Selection]:
    """Rows at which `first` holds and rows at which only `second` does; all and none if rows are not to be selected."""
    padding = invariant_rows(a.hidden.device) if a.batch_invariant else 1
    if a.select_rows:
        return select(first, second, padding)
    return everything(a.keep.numel(), padding, a.keep.device), nothing(a.keep.numel(), a.keep.device)


def policy_plan(a: HeadArguments, size: int, needs: HeadNeeds) -> Plan:
    """Plan of the policy loss for `size` rows."""
    return _plan(plan_policy_loss, a, size, needs)


def logprobs_plan(a: HeadArguments, size: int, needs: HeadNeeds | None) -> Plan:
    """Plan of the log-probs for `size` rows; needs None: forward only."""
    return _plan(plan_logprobs, a, size, HeadNeeds((False,), (False,), False) if needs is None else needs)


def num_statistics(a: HeadArguments | LogitsArguments) -> int:
    """Vectors that a row carries."""
    return Tempering(floor=a.floor, entropy_alone=a.entropy_floor).num_statistics


def _plan(make: Callable[..., Plan], a: HeadArguments, size: int, needs: HeadNeeds) -> Plan:
    return make(
        size,
        a.weight.shape[0],
        a.hidden.shape[1],
        dtype=a.hidden.dtype,
        device=a.hidden.device,
        scratch_copies=row_backend(a.impl, a.hidden.device).SCRATCH_COPIES,
        needs_grad_hidden=any(needs.hidden),
        needs_grad_weight=any(needs.weight),
        batch_invariant=a.batch_invariant,
        memory_budget=a.memory_budget,
    )


def flat_gradients(found: HeadGradients, like: Tensor) -> tuple[Tensor, ...]:
    """Gradients in the order of the arguments; an operator returns tensors, so (0,) stands for one that is not there."""
    pairs = [*zip(found.hidden, found.weight, strict=True), (None, None)][:2]
    return tuple(like.new_empty(0) if g is None else g for g in (*pairs[0], *pairs[1], found.bias))


def fake_gradients(a: HeadArguments, weight_dtype: torch.dtype, bias_dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Shapes and dtypes of `flat_gradients`."""
    dtypes = (a.hidden.dtype, weight_dtype, a.hidden.dtype, weight_dtype, bias_dtype)
    return tuple(
        torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format) if needed and x is not None else a.hidden.new_empty(0)
        for x, dtype, needed in zip(differentiable(a), dtypes, a.needs, strict=True)
    )


def differentiable(a: HeadArguments) -> tuple[Tensor | None, ...]:
    """The arguments that may have gradients, in order."""
    return a.hidden, a.weight, a.lora_hidden, a.lora_weight, a.bias


def token_dtype(a: HeadArguments) -> torch.dtype:
    """Dtype of per-token outputs."""
    return statistics_dtype(a.hidden.dtype)


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Products choose their own dtypes."""
    return nullcontext() if like.device.type == "meta" else torch.autocast(like.device.type, enabled=False)
