"""From what a user passes to what the algorithms take: options checked, autocast applied, the tokens that count found."""

from __future__ import annotations

import torch
from torch import Tensor

from aer_kernels import reference
from aer_kernels.autograd import Tokens
from aer_kernels.objectives.policy import ObjectiveConfig
from aer_kernels.validate import IMPLEMENTATIONS, check_at_least, check_choice, check_positive, check_values, per_token, row_backend


def check_common(impl: str, temperature: float | Tensor, softcap: float | None, memory_budget: int | None) -> None:
    """Rules of the options that every public function has."""
    check_choice("impl", impl, IMPLEMENTATIONS)
    if not isinstance(temperature, Tensor):
        check_positive("temperature", temperature)
    check_positive("softcap", softcap)
    check_positive("memory_budget", memory_budget)


def objective_config(
    objective: str, clip_low: float, clip_high: float, dual_clip: float | None, kl_coef: float, ref_logprobs: Tensor | None
) -> ObjectiveConfig:
    """The constants of the objective, checked."""
    check_choice("objective", objective, ("ppo", "cispo"))
    check_at_least("clip_low", clip_low, 0)
    check_at_least("clip_high", clip_high, 0)
    check_at_least("kl_coef", kl_coef, 0)
    if dual_clip is not None:
        if not dual_clip > 1:
            raise ValueError(f"dual_clip must be > 1 or None, got {dual_clip}")
        if objective != "ppo":
            raise ValueError(f"dual_clip must be None for objective={objective!r}, got {dual_clip}")
    if kl_coef > 0 and ref_logprobs is None:
        raise ValueError(f"ref_logprobs must be given when kl_coef > 0, got None with kl_coef={kl_coef}")
    return ObjectiveConfig(objective, clip_low, clip_high, dual_clip, kl_coef)  # type: ignore[arg-type]


def autocast(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What F.linear would do under torch.autocast: cast both operands to its dtype."""
    if isinstance(hidden, Tensor) and isinstance(weight, Tensor) and torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        return hidden.to(dtype), weight.to(dtype), bias
    return hidden, weight, bias


def loss_tokens(
    targets: Tensor,
    loss_mask: Tensor | None,
    ignore_index: int,
    temperature: float | Tensor,
    softcap: float | None,
    vocab_size: int,
    impl: str,
    debug_checks: bool | None,
    dtype: torch.dtype,
) -> Tokens:
    """Find the tokens that count. The only device sync of a call whose tokens are all kept is the size of this index."""
    device, flat = targets.device, targets.reshape(-1).long().contiguous()
    keep = flat != ignore_index
    if loss_mask is not None:
        keep = keep & (per_token("loss_mask", loss_mask, targets, integer=not loss_mask.is_floating_point()) != 0)
    rows = keep.nonzero().squeeze(1)
    selected = None if rows.numel() == flat.numel() else rows
    if isinstance(temperature, Tensor):
        temperature = per_token("temperature", temperature, targets).to(torch.promote_types(dtype, torch.float32))
        temperature = temperature.contiguous() if selected is None else temperature.index_select(0, selected)
    if selected is not None:
        flat = flat.index_select(0, selected)
    if debug_checks or (debug_checks is None and device.type == "cpu"):
        check_values(flat, vocab_size, temperature)
    backend = reference if impl == "reference" else row_backend(impl, device)
    return Tokens(selected, flat, temperature, softcap, backend)
