"""AdamW: torch's, or torchao's for parameters in bfloat16 and moments in 8 bits.

A bfloat16 has 8 significant bits, so that an update below 1/512 of a weight would be lost in rounding to the nearest. torchao computes in
float32 and rounds up or down at random, in proportion: right on average. Its random numbers are a function of the seed and the update.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from aer_train.config.tree import OptimConfig


def make_optimizer(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return AdamW over parameters of which every one is trained."""
    moved = list(parameters)
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.state == "float32" and all(parameter.dtype == torch.float32 for parameter in moved):
        # a quarter of the time on a CPU, as the default there goes tensor by tensor; but it writes elsewhere in a slice of another tensor
        fused = all(parameter.is_contiguous() for parameter in moved) or None
        return torch.optim.AdamW(moved, fused=fused, **options)
    return _low_bit(config.state)(moved, bf16_stochastic_round=True, **options)


def take_step(optimizer: torch.optim.Optimizer, rate: float, seed: int) -> None:
    """Move the parameters by their gradients, and drop these.

    Args:
        rate: learning rate.
        seed: of what is rounded at random.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    on_gpu = [parameters[0].device] if parameters[0].is_cuda else []
    # torchao compiles its step; on a CPU that needs a compiler, and takes longer than many steps
    as_written = nullcontext() if on_gpu or is_torch_adamw(optimizer) else torch.compiler.set_stance("force_eager")
    with torch.random.fork_rng(devices=on_gpu), as_written:
        torch.manual_seed(seed)
        optimizer.step()
    optimizer.zero_grad()


def is_torch_adamw(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its moments are ordinary tensors of the dtype of the parameters."""
    return not hasattr(optimizer, "bf16_stochastic_round")


def _low_bit(state: str) -> Any:
    """torchao's AdamW; whatever is not in 8 bits (all moments, or those of small tensors) in float32 whatever the parameters are in."""
    from torchao.optim import AdamW8bit
    from torchao.optim.adam import _AdamW

    class AdamW(AdamW8bit if state == "8bit" else _AdamW):  # type: ignore[misc, valid-type]
        def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
            found = super()._new_buffer(p, signed)
            return found if is_quantized(found) else found.float()

    return AdamW


def is_quantized(tensor: Tensor) -> bool:
    """Whether a moment is torchao's of 8 bits: `codes` and `scale` are what it holds."""
    return hasattr(tensor, "codes")
