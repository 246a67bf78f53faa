"""Difficulty-aware allocation: what share of the entropy pressure each prompt gets."""

from __future__ import annotations

from torch import Tensor

from aer_kernels.entropy_control.config import EntropyControlConfig


def difficulty_weights(accuracy: Tensor, config: EntropyControlConfig, relative_entropy: Tensor | None) -> Tensor:
    """Return w(q) (C1), divided by its mean over the prompts when `normalize_weights` is set (C7).

    Args:
        accuracy: (P,) fp32, mean verified reward of each prompt's samples, in [0, 1].
        relative_entropy: (P,) fp32, H(q) / H*; None where it does not matter.
    """
    if config.difficulty == "uniform":
        weights = accuracy.new_ones(accuracy.shape)
    else:
        weights = (1.0 - accuracy / (config.rho if config.difficulty == "hinge" else 1.0)).clamp(min=config.least_weight)
    if not config.include_all_wrong:
        weights = weights.masked_fill(accuracy <= 0, 0.0)
    if config.surplus is not None and relative_entropy is not None:
        weights = weights * (1.0 - (relative_entropy - 1.0) / config.surplus).clamp(0.0, 1.0)
    if config.normalize_weights and weights.numel():
        weights = weights / weights.mean().clamp(min=config.weight_floor)
    return weights
