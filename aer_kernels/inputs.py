"""From what a user passes to what the algorithms take: options checked, autocast applied, the tokens that count found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from aer_kernels.objectives.aggregation import Weighting
from aer_kernels.objectives.policy import Divergence, Objective, PolicyInputs, Surrogate
from aer_kernels.operators import HeadArguments
from aer_kernels.reference import rollout_weights
from aer_kernels.validate import (
    IMPLEMENTATIONS,
    check_at_least,
    check_choice,
    check_group,
    check_head,
    check_impl,
    check_lora,
    check_main_grad,
    check_mask,
    check_number_or_tensor,
    check_positive,
    check_values,
    per_token,
)


def check_common(impl: str, temperature: float | Tensor, softcap: float | None, memory_budget: int | None) -> None:
    """Rules of the options that every public function has."""
    check_choice("impl", impl, IMPLEMENTATIONS)
    if not isinstance(temperature, Tensor):
        check_positive("temperature", temperature)
    check_positive("softcap", softcap)
    check_positive("memory_budget", memory_budget)


def make_surrogate(objective: str, clip_low: float, clip_high: float, dual_clip: float | None, kl: str, rollout_cap: float) -> Surrogate:
    """The constants of the objective, checked."""
    check_choice("objective", objective, get_args(Objective))
    check_choice("kl", kl, get_args(Divergence))
    check_at_least("clip_low", clip_low, 0)
    check_at_least("clip_high", clip_high, 0)
    check_positive("rollout_cap", rollout_cap)
    if dual_clip is not None:
        if not dual_clip > 1:
            raise ValueError(f"dual_clip must be > 1 or None, got {dual_clip}")
        if objective != "ppo":
            raise ValueError(f"dual_clip must be None for objective={objective!r}, got {dual_clip}")
    return Surrogate(objective, clip_low, clip_high, dual_clip, kl, rollout_cap)  # type: ignore[arg-type]


def check_row_tol(row_tol: float | None, batch_invariant: bool) -> None:
    """A tolerance that goes with the other options."""
    if row_tol is None:
        return
    check_at_least("row_tol", row_tol, 0)
    if batch_invariant:
        raise ValueError(f"row_tol must be None with batch_invariant, got {row_tol}: leaving out rows changes the shapes of the products")


def autocast(hidden: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """What F.linear would do under torch.autocast: cast the operands to its dtype."""
    given = (hidden, *others)
    if isinstance(hidden, Tensor) and hidden.device.type != "meta" and torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        return tuple(x.to(dtype) if isinstance(x, Tensor) else x for x in given)
    return given


def prepare_head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    lora_scale: float,
    temperature: float | Tensor,
    softcap: float | None,
    floor: Tensor | None,
    floor_scope: str,
    loss_mask: Tensor | None,
    ignore_index: int,
    main_grad: Tensor | None,
    vocab_group: dist.ProcessGroup | None,
    vocab_start: int | None,
    select_rows: bool | None,
    batch_invariant: bool,
    memory_budget: int | None,
    impl: str,
    debug_checks: bool | None,
) -> tuple[HeadArguments, Tokens]:
    """Check everything that the functions on a linear head share and bring it into the form that the operators take."""
    check_common(impl, temperature, softcap, memory_budget)
    check_group(vocab_group, vocab_start, impl)
    whole_weight = weight
    weight, bias, lora_b = (local_weight(x, vocab_group) for x in (weight, bias, lora_b))
    lora_a = local_weight(lora_a, None)
    hidden, weight, lora_a, lora_b = autocast(hidden, weight, lora_a, lora_b)
    check_head(hidden, weight, targets, bias, impl)
    check_impl(impl, hidden.device)
    check_lora(hidden, weight, lora_a, lora_b)
    check_main_grad(main_grad, weight)
    start, vocab_size = 0, None if vocab_group is not None else weight.shape[0]
    if vocab_group is not None:
        start = first_row(whole_weight, weight, vocab_group, debug_checks) if vocab_start is None else vocab_start
    tokens = find_tokens(targets, loss_mask, ignore_index, temperature, start, vocab_size, debug_checks, hidden.dtype)
    floors = tokens.floor(floor, floor_scope, targets, hidden.dtype, debug_checks)
    flat = hidden.reshape(-1, hidden.shape[-1])
    lora_hidden = None if lora_a is None else (flat @ lora_a.T) * lora_scale
    inputs = (flat, weight, lora_hidden, lora_b, bias)
    needs = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs]
    needs[1] = needs[1] or (torch.is_grad_enabled() and main_grad is not None)
    head = HeadArguments(
        *inputs,
        targets=tokens.targets,
        keep=tokens.keep,
        token_temperature=tokens.token_temperature,
        floor=floors,
        temperature=tokens.temperature,
        softcap=softcap,
        entropy_floor=floor_scope == "entropy",
        impl=impl,
        memory_budget=memory_budget,
        select_rows=select_rows,
        batch_invariant=batch_invariant,
        group=None if vocab_group is None else vocab_group.group_name,
        needs=needs,
    )
    return head, tokens


def local_weight(weight: Any, vocab_group: object) -> Any:
    """A plain tensor from a sharded parameter (DTensor, as FSDP2 makes them), with a gradient that is whole.

    Every rank of the mesh has its own tokens, so the gradient of the gathered weight is the sum over ranks; plain `full_tensor()` would
    hand each rank a slice of its own. With a vocab_group the shard itself is the head.
    """
    if not hasattr(weight, "device_mesh"):  # also None
        return weight
    if vocab_group is not None:
        return weight.to_local()
    from torch.distributed.tensor import Partial

    return weight.full_tensor(grad_placements=[Partial()] * weight.device_mesh.ndim)


def first_row(whole: Any, shard: Tensor, group: dist.ProcessGroup, debug_checks: bool | None) -> int:
    """Vocabulary row at which this rank's shard begins, if the user does not say: shards of one size, or a DTensor's."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    if hasattr(whole, "device_mesh"):
        return min(rank * -(-whole.shape[0] // world), whole.shape[0])
    if checks_values(debug_checks, shard.device):
        sizes = shard.new_empty(world, dtype=torch.int64)
        dist.all_gather_into_tensor(sizes, sizes.new_full((1,), shard.shape[0]), group=group)
        if bool((sizes != shard.shape[0]).any()):
            raise ValueError(f"vocab_start must be given when shards differ in size, got None with {sizes.tolist()} rows")
    return rank * shard.shape[0]


def checks_values(debug_checks: bool | None, device: torch.device) -> bool:
    """Whether values are looked at: if asked to, or where that costs nothing and breaks no graph."""
    if debug_checks is None:
        return device.type == "cpu" and not torch.compiler.is_compiling()
    return debug_checks


@dataclass(frozen=True)
class Tokens:
    """Targets and temperatures of all N tokens, and which of them count."""

    targets: Tensor
    """(N,) int64, in the vocabulary even where the token does not count."""
    keep: Tensor
    """(N,) bool"""
    token_temperature: Tensor | None
    """(N,), or None for `temperature`."""
    temperature: float

    def floor(self, floor: Tensor | None, scope: str, like: Tensor, dtype: torch.dtype, debug_checks: bool | None) -> Tensor | None:
        """The floor of each token, (N,), -inf at tokens that do not count."""
        check_choice("floor_scope", scope, ("all", "entropy"))
        if floor is None:
            return None
        found = per_token("floor", floor, like).to(torch.promote_types(dtype, torch.float32))
        if checks_values(debug_checks, like.device) and bool((self.keep & ~(found < torch.inf)).any()):
            raise ValueError("floor must be below infinity, so that every row keeps a logit, got NaN or infinity")
        return torch.where(self.keep, found, -torch.inf)

    def check_kept(self, entropy: Tensor, logprobs: Tensor, debug_checks: bool | None) -> None:
        """Raise ValueError where the floor of the entropy has left a row without a logit (a device read on a GPU)."""
        if checks_values(debug_checks, entropy.device) and bool((self.keep & entropy.isnan() & ~logprobs.isnan()).any()):
            raise ValueError("floor must leave every row at least one logit, got one above all of a row")

    def clean(self, name: str, value: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
        """A per-token input of the user, flat, with 0 at tokens that do not count, whatever it holds there."""
        return torch.where(self.keep, per_token(name, value, like).to(dtype), 0.0)


def policy_inputs(
    tokens: Tokens,
    targets: Tensor,
    weighting: Weighting,
    rollout_cap: float,
    dtype: torch.dtype,
    *,
    advantages: Tensor,
    importance_weights: Tensor | None,
    entropy_coef: float | Tensor,
    kl_coef: float | Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    rollout_logprobs: Tensor | None,
    debug_checks: bool | None,
) -> PolicyInputs:
    """Check the per-token inputs of the policy loss, and bring them into the form that objectives take."""

    def clean(name: str, value: Tensor | None) -> Tensor | None:
        return None if value is None else tokens.clean(name, value, targets, dtype)

    def coefficient(name: str, value: float | Tensor) -> Tensor:
        given = value if isinstance(value, Tensor) else torch.full((), float(value), dtype=dtype, device=targets.device)
        return tokens.clean(name, given, targets, dtype)

    check_number_or_tensor("entropy_coef", entropy_coef)
    check_number_or_tensor("kl_coef", kl_coef)
    if not isinstance(kl_coef, Tensor):
        check_at_least("kl_coef", kl_coef, 0)
    diverges = isinstance(kl_coef, Tensor) or kl_coef > 0
    if diverges and ref_logprobs is None:
        raise ValueError("ref_logprobs must be given with kl_coef, got None")
    old, rollout = clean("old_logprobs", old_logprobs), clean("rollout_logprobs", rollout_logprobs)
    advantage = tokens.clean("advantages", advantages, targets, dtype)
    if importance_weights is not None:
        factors = tokens.clean("importance_weights", importance_weights, targets, dtype)
        if checks_values(debug_checks, targets.device) and bool((factors < 0).any()):
            raise ValueError(f"importance_weights must be >= 0, got {float(factors.min())}")
        advantage = advantage * factors
    if old is not None and rollout is not None:
        advantage, rollout = advantage * rollout_weights(old, rollout, rollout_cap), None
    return PolicyInputs(
        advantage,
        weighting.weights,
        coefficient("entropy_coef", entropy_coef) * weighting.entropy_ratio,
        old,
        clean("ref_logprobs", ref_logprobs),
        coefficient("kl_coef", kl_coef) if diverges else None,
        rollout,
    )


def find_tokens(
    targets: Tensor,
    loss_mask: Tensor | None,
    ignore_index: int,
    temperature: float | Tensor,
    vocab_start: int,
    vocab_size: int | None,
    debug_checks: bool | None,
    dtype: torch.dtype,
) -> Tokens:
    """Find the tokens that count. No device read, unless values are to be checked."""
    flat = targets.reshape(-1).long()
    keep = flat != ignore_index
    if loss_mask is not None:
        mask = per_token("loss_mask", loss_mask, targets, integer=not loss_mask.is_floating_point())
        if mask.dtype != torch.bool and checks_values(debug_checks, targets.device):
            check_mask(mask)
        keep = keep & (mask != 0)
    per_row = None
    if isinstance(temperature, Tensor):
        per_row = per_token("temperature", temperature, targets).to(torch.promote_types(dtype, torch.float32))
    if checks_values(debug_checks, targets.device):
        check_values(flat[keep], vocab_size, None if per_row is None else per_row[keep])
    if per_row is not None:
        per_row = torch.where(keep, per_row, 1.0)
    inside = torch.where(keep, flat - vocab_start, 0)
    return Tokens(inside, keep, per_row, 1.0 if isinstance(temperature, Tensor) else float(temperature))
