"""What a token costs, found by passing a few through the model: what the backward pass will need of it, and what sampling keeps of it."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aer_train.model.policy import body_of
from aer_train.model.recompute import everything_kept

PROBE = 64
"""Tokens of the shortest probe; models that work in chunks use multiples of this."""


@dataclass(frozen=True)
class Costs:
    """What a token costs, in bytes."""

    token: float
    """Activations that are kept of a token for the backward pass."""
    pair: float
    """The same of each pair of tokens of a sequence, where the attention keeps its scores."""
    cache: float
    """Keys and values (or states) that sampling keeps of a token."""

    def activations(self, width: int) -> float:
        """Of a token in a sequence of this width."""
        return self.token + self.pair * width


def measure_costs(model: Any, device: torch.device, autocast: AbstractContextManager[Any], longest: int | None) -> Costs:
    """Return what a token costs; a few hundred pass through the model.

    Args:
        model: causal LM of transformers, whole on this process; it may be fake. Recomputation does not count.
        longest: positions that the model has; None for no limit.
    """
    body, width = body_of(model), PROBE if longest is None else max(1, min(PROBE, longest // 2))
    model.eval()
    with autocast, everything_kept(model):
        one, two, long = (_saved_bytes(body, *shape, device) for shape in ((1, width), (2, width), (1, 2 * width)))
        row, difference = two - one, long - one  # what does not depend on the tokens, such as weights, cancels
        pair = max(0.0, (difference - row) / (2 * width**2))
        short, double = (_cache_bytes(body, model.config, length, device) for length in (width, 2 * width))
    return Costs(row / width - pair * width, pair, max(0.0, (double - short) / width))


def recomputed(costs: Costs, layers: int, hidden_size: int) -> Costs:
    """Return the costs with gradient checkpointing: the input of each layer, and all of one layer at a time."""
    return Costs(costs.token / layers + 4 * layers * hidden_size, costs.pair / layers, costs.cache)


def _saved_bytes(body: Any, rows: int, width: int, device: torch.device) -> int:
    """Bytes of all that the graph of a forward pass holds on to, each memory once."""
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    ids = torch.zeros(rows, width, dtype=torch.long, device=device)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
    found = sum(storage.nbytes() for storage in kept.values())
    del states
    return found


@torch.no_grad()
def _cache_bytes(body: Any, config: Any, width: int, device: torch.device) -> int:
    """Bytes of the cache after so many tokens."""
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=config)
    name = "past_key_values" if "past_key_values" in inspect.signature(body.forward).parameters else "cache_params"
    ids = torch.zeros(1, width, dtype=torch.long, device=device)
    body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, **{name: cache})
    return sum(value.nbytes for layer in cache.layers for value in vars(layer).values() if isinstance(value, Tensor))
