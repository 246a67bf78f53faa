"""The policy that a TRL run began with, where TRL keeps one: its reference model, a frozen copy of an adapter, or adapters turned off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from trl.trainer.utils import add_fused_lm_head, get_config_model_id, use_adapter

from aer_kernels.methods import Method
from aer_kernels.methods.seam import also_needs

GIVEN = frozenset({"reference_entropy"})
"""What TRL's trainer can give a method beside entropy."""

COPY = "ref"
"""What TRL calls its frozen copy of an adapter."""

FROM_0 = frozenset({"lora_B", "lora_embedding_A"})
"""The factors of a LoRA that are 0 where it begins as nothing."""

WHOLE_NUMBER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of one."""

FOR = "for a method that compares with the first policy"


def compares(method: Method) -> bool:
    """Whether the method compares the policy with the first one."""
    return bool(GIVEN & also_needs(method))


def prepare_first_policy(trainer: Any) -> None:
    """Let TRL's reference model give entropies.

    Args:
        trainer: a GRPOTrainer that has just been made.
    Raises:
        ValueError: TRL keeps no first policy, or another one than the run begins with.
    """
    if trainer.args.sync_ref_model:
        raise ValueError(f"sync_ref_model must be False {FOR}, got True: it moves that policy")
    model, reference = _unwrapped(trainer, trainer.model), _unwrapped(trainer, trainer.ref_model)
    if reference is not None:
        _check_loaded(trainer, model, reference)
        options = {"temperature": trainer.temperature, "cast_lm_head_to_fp32": trainer.args.cast_lm_head_to_fp32}
        add_fused_lm_head(reference, **options, outputs=("log_probs", "entropy"))
    elif is_peft_model(model):
        _check_adapters(model)
    else:
        kept = "TRL keeps the first policy only for its KL penalty, or under a LoRA"
        raise ValueError(f"beta must be above 0 {FOR}, got {trainer.beta:g}: {kept}")


@contextmanager
def first_policy(trainer: Any) -> Iterator[Any]:
    """Context in which the yielded model is the first policy, for passes without a graph."""
    if trainer.ref_model is not None:
        yield trainer.ref_model
        return
    model = _unwrapped(trainer, trainer.model)
    with use_adapter(model, adapter_name=COPY if COPY in model.peft_config else None), _without_dropout(model):
        yield trainer.model


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def mark(trainer: Any) -> int | None:
    """Return a number that another first policy would not have; None where a rank holds only a part of the weights."""
    if _sharded(trainer):
        return None
    kept = _unwrapped(trainer, trainer.model if trainer.ref_model is None else trainer.ref_model)
    trained = kept.active_adapters if trainer.ref_model is None else ()
    return sum(_bits(parameter) for name, parameter in kept.named_parameters() if not set(trained) & set(name.split(".")))


def restore_adapter(trainer: Any, checkpoint: str) -> None:
    """Load the adapter that is trained: of an adapter and TRL's copy of it transformers loads the copy alone."""
    model = _unwrapped(trainer, trainer.model)
    if not _sharded(trainer) and is_peft_model(model) and COPY in model.peft_config:
        model.load_adapter(checkpoint, model.active_adapters[0], is_trainable=True)


def _check_loaded(trainer: Any, model: nn.Module, reference: nn.Module) -> None:
    """TRL loads its reference model from where the policy's configuration says that the policy is from."""
    if _sharded(trainer):
        return
    ours, theirs = dict(model.named_parameters()), dict(reference.named_parameters())
    if set(ours) != set(theirs) or not all(_equal(ours[name], theirs[name]) for name in ours):
        source = get_config_model_id(trainer.model.config)
        raise ValueError(
            f"model must be as {source!r} holds it {FOR}, got other weights: TRL loads that policy from there. Save yours first"
        )


def _check_adapters(model: Any) -> None:
    parameters, (adapter, *others) = dict(model.named_parameters()), model.active_adapters
    beside = [name for name, parameter in parameters.items() if parameter.requires_grad and adapter not in name.split(".")]
    if others or beside:
        raise ValueError(f"model must train one adapter and nothing else {FOR}, got {', '.join(others or beside[:3])} beside {adapter}")
    mine = {name: parameter for name, parameter in parameters.items() if adapter in name.split(".")}
    if COPY in model.peft_config:
        copies = {name: parameters.get(".".join(COPY if part == adapter else part for part in name.split("."))) for name in mine}
        other = [name for name, copy in copies.items() if copy is None or not _equal(mine[name], copy)]
        if other:
            raise ValueError(f"model must have an adapter that TRL copies whole {FOR}, got one whose copy lacks {other[0]}")
        return
    lora = model.peft_config[adapter].peft_type == "LORA"
    if not lora or any(bool(parameter.any()) for name, parameter in mine.items() if FROM_0 & set(name.split("."))):
        off = "that policy is the model without it, unless it is given with the model and beta is above 0"
        raise ValueError(f"the adapter must be a LoRA that begins as nothing (init_lora_weights=True) {FOR}, got another: {off}")


def _unwrapped(trainer: Any, model: Any) -> Any:
    return None if model is None else trainer.accelerator.unwrap_model(model, keep_torch_compile=False)


def _sharded(trainer: Any) -> bool:
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    """Whether they are the same in the dtype of `theirs`."""
    return ours.shape == theirs.shape and torch.equal(ours.to(theirs), theirs)


def _bits(values: Tensor) -> int:
    """The sum of the numbers as whole ones, bit by bit: the same on every device."""
    return int(values.detach().view(WHOLE_NUMBER[values.element_size()]).sum(dtype=torch.int64))
