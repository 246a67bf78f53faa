"""The policy that a TRL run began with, where TRL keeps one: its reference model, a frozen copy of an adapter, or adapters turned off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl.trainer.utils import add_fused_lm_head, use_adapter

from aer_kernels.methods import Method
from aer_kernels.methods.seam import also_needs

GIVEN = frozenset({"reference_entropy"})
"""What TRL's trainer can give a method beside entropy."""


def compares(method: Method) -> bool:
    """Whether the method compares the policy with the first one."""
    return bool(GIVEN & also_needs(method))


def prepare_first_policy(trainer: Any, new_adapter: bool) -> None:
    """Let TRL's reference model give entropies.

    Args:
        trainer: a GRPOTrainer that has just been made.
        new_adapter: whether the trainer made the adapter that it trains, from peft_config.
    Raises:
        ValueError: TRL keeps no first policy.
    """
    if trainer.args.sync_ref_model:
        raise ValueError("sync_ref_model must be False for a method that compares with the first policy, got True: it moves that policy")
    if trainer.beta == 0 and not new_adapter:
        kept = "TRL keeps the first policy only for its KL penalty, or where it makes a LoRA from peft_config"
        raise ValueError(f"beta must be above 0 for a method that compares with the first policy, got 0: {kept}")
    unwrapped = trainer.accelerator.unwrap_model
    if trainer.ref_model is not None:
        options = {"temperature": trainer.temperature, "cast_lm_head_to_fp32": trainer.args.cast_lm_head_to_fp32}
        add_fused_lm_head(unwrapped(trainer.ref_model), **options, outputs=("log_probs", "entropy"))
    elif not new_adapter and "ref" not in unwrapped(trainer.model).peft_config:
        raise ValueError("model must have an adapter of which TRL keeps a copy, got one without: pass peft_config to the trainer instead")


@contextmanager
def first_policy(trainer: Any) -> Iterator[Any]:
    """Context in which the yielded model is the first policy, for passes without a graph."""
    if trainer.ref_model is not None:
        yield trainer.ref_model
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
        yield trainer.model
