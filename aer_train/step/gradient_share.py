"""How much of an update's gradient is due to its entropy bonus, measured by a backward pass of the bonus alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from aer_train import sharding

Gradients = list[Tensor | None]


def take_gradients(parameters: Iterable[torch.nn.Parameter]) -> Gradients:
    """Return the gradients, and leave the parameters without."""
    taken: Gradients = []
    for parameter in parameters:
        taken.append(parameter.grad)
        parameter.grad = None
    return taken


@torch.no_grad()
def gradient_share(part: Gradients, parameters: Iterable[torch.nn.Parameter]) -> float | None:
    """Return |part| / (|part| + |rest|), Euclidean norms over all parameters; None where both are 0. The same on every rank.

    Args:
        part: one term of the gradient; overwritten.
        parameters: with the whole gradient, which is part + rest.
    """
    pairs = [(mine, parameter.grad) for mine, parameter in zip(part, parameters, strict=True) if mine is not None]
    size = _norm([mine for mine, _ in pairs])
    for mine, whole in pairs:
        assert whole is not None, "a term's gradient is part of the whole"
        mine.neg_().add_(whole)
    rest = _norm([mine for mine, _ in pairs])
    return size / (size + rest) if size + rest else None


def _norm(tensors: list[Tensor]) -> float:
    return sharding.whole(torch.nn.utils.get_total_norm(tensors)).item()
