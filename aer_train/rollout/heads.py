"""Attention of several query heads to the same keys (grouped-query attention), without a copy of the keys for each head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def keys_are_shared(device: torch.device) -> Iterator[None]:
    """Context in which, on a CPU, keys and values stay as they are cached.

    Where there is a mask, transformers repeats them for every query head, at every token and in every layer, as GPU kernels need it.
    PyTorch's kernel for a CPU takes them as they are, with the same bits. It is for passes without a graph.
    """
    from transformers.integrations import sdpa_attention

    module: Any = sdpa_attention
    theirs = getattr(sdpa_attention, "use_gqa_in_sdpa", None)  # transformers has no option for it
    if device.type != "cpu" or theirs is None:
        yield
        return
    module.use_gqa_in_sdpa = _same_width
    try:
        yield
    finally:
        module.use_gqa_in_sdpa = theirs


def _same_width(mask: Tensor | None, key: Tensor, *value: Tensor) -> bool:
    return all(key.shape[-1] == other.shape[-1] for other in value)
