"""Difficulty-aware allocation: what share of the entropy pressure each prompt gets, and how much its entropy counts."""

from __future__ import annotations

from torch import Tensor

from aer_kernels.entropy_control.config import EntropyControlConfig

WEIGHT_FLOOR = 0.05
"""Smallest divisor of the weights."""


def difficulty_weights(accuracy: Tensor, config: EntropyControlConfig, relative_entropy: Tensor | None) -> Tensor:
    """Return w(q) (C1), divided by its mean over the prompts (C7), so that alpha's scale does not move with accuracy.

    Args:
        accuracy: (P,) fp32, mean verified reward of each prompt's samples, in [0, 1].
        relative_entropy: (P,) fp32, H(q) / H*; None where it does not matter.
    """
    weights = _hinge(accuracy, config, config.least_weight)
    if not config.include_all_wrong:
        weights = weights.masked_fill(accuracy <= 0, 0.0)
    if config.surplus is not None and relative_entropy is not None:
        weights = weights * (1.0 - (relative_entropy - 1.0) / config.surplus).clamp(0.0, 1.0)
    return weights / weights.mean().clamp(min=WEIGHT_FLOOR) if weights.numel() else weights


def held_weights(accuracy: Tensor, config: EntropyControlConfig) -> Tensor:
    """Return v(q) (C13), 1 for every prompt where the entropy of all is held; arguments as for `difficulty_weights`."""
    return accuracy.new_ones(accuracy.shape) if config.held == "all" else _hinge(accuracy, config, 0.0)


def _hinge(accuracy: Tensor, config: EntropyControlConfig, least: float) -> Tensor:
    if config.difficulty == "uniform":
        return accuracy.new_ones(accuracy.shape)
    return (1.0 - accuracy / (config.rho if config.difficulty == "hinge" else 1.0)).clamp(min=least)
