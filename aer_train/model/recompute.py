"""Activations that are computed again in the backward pass: less memory, about a third more time.

transformers does so in training mode alone, which also switches on whatever else depends on it: dropout, jitter of routers, experts and
layers that are drawn. Here the model stays in evaluation mode, so that the update sees the policy that sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from aer_train import sharding

MARK = "recomputed_in_backward"
"""Attribute of the forward functions that do so."""


def recompute_layers(model: Any) -> None:
    """Make each decoder layer keep its inputs alone for the backward pass.

    Raises:
        ValueError - the model does not say what its layers are.
    """
    for layer in _layers(model):
        layer.forward = _recomputed(layer.forward)


@contextmanager
def everything_kept(model: Any) -> Iterator[None]:
    """Passes in here keep all activations."""
    found = [(layer, vars(layer)["forward"]) for layer in model.modules() if hasattr(vars(layer).get("forward"), MARK)]
    for layer, forward in found:
        layer.forward = forward.__wrapped__
    try:
        yield
    finally:
        for layer, forward in found:
            layer.forward = forward


def _layers(model: Any) -> list[nn.Module]:
    """The outermost ones."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    known = {id(m) for m in model.modules() if isinstance(m, GradientCheckpointingLayer)} or {id(m) for m in sharding.layers(model)}
    found: list[nn.Module] = []

    def walk(module: nn.Module) -> None:
        for child in module.children():
            if id(child) in known:
                found.append(child)
            else:
                walk(child)

    walk(model)
    return found


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    setattr(wrapped, MARK, True)
    return wrapped
