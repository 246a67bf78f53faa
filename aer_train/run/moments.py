"""The state of the optimizer as plain tensors by parameter and name, as checkpoints hold it, and the way back.

torch's own functions for that cast a moment to the dtype of its parameter, and write a quantized one as a pickle. So what torchao keeps is
taken apart here: a moment of 8 bits becomes its codes and its scales, and comes back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from aer_train.step.optimizer import is_quantized, is_torch_adamw

Moments = dict[str, dict[str, Tensor]]


def moments_of(model: Any, optimizer: torch.optim.Optimizer) -> Moments:
    """Return the state of each parameter that has one. All processes must call it together."""
    if is_torch_adamw(optimizer):
        found: Any = get_optimizer_state_dict(model, optimizer)["state"]
        return found
    return {name: _parts(optimizer.state[p]) for name, p in model.named_parameters() if optimizer.state.get(p)}


def moments_to_fill(model: Any, optimizer: torch.optim.Optimizer, untouched: set[str]) -> tuple[Moments, Callable[[], None]]:
    """Return tensors into which a checkpoint is read, and what to call when they are filled.

    Args:
        untouched: parameters that had no state when the checkpoint was written.
    """
    if not is_torch_adamw(optimizer):
        return _new_parts(model, optimizer, untouched), lambda: None
    # betas and weight decay are the configuration's, which may have been overridden for the rest of the run
    found: Any = get_optimizer_state_dict(model, optimizer)
    written = {name: moments for name, moments in found["state"].items() if name not in untouched}
    for name in found["state"].keys() & untouched:  # as if no step had been made, where torch has made one to have something to fill
        for value in found["state"][name].values():
            value.zero_()
    return written, lambda: set_optimizer_state_dict(model, optimizer, found)


def _new_parts(model: Any, optimizer: Any, untouched: set[str]) -> Moments:
    """Give every parameter but the untouched ones the state of no step, as torchao makes it at the first."""
    moved = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    found = {}
    for name, p in model.named_parameters():
        if p in moved and name not in untouched:
            buffers = {"exp_avg": optimizer._new_buffer(p, True), "exp_avg_sq": optimizer._new_buffer(p, False)}
            optimizer.state[p] = {"step": torch.tensor(0.0), **buffers}
            found[name] = _parts(optimizer.state[p])
    return found


def _parts(state: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that a state is made of; they share its memory."""
    plain = {name: value for name, value in state.items() if not is_quantized(value)}
    coded = {f"{name}.{part}": getattr(value, part) for name, value in state.items() if is_quantized(value) for part in ("codes", "scale")}
    return plain | coded
