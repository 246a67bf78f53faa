"""Advantages of a group of responses relative to each other. P prompts, G responses a prompt."""

from __future__ import annotations

import torch
from torch import Tensor

STD_FLOOR = 1e-4
"""Added to the standard deviation of a group's rewards."""


def group_advantages(rewards: Tensor, kind: str, tolerance: float = 0.0) -> Tensor:
    """Return the advantage of each response; a group of equal rewards gets exactly 0.

        group_mean: r - mean        group_std: (r - mean) / (std + 1e-4)        rloo: r - mean of the others

    Args:
        rewards: (P, G) float, G >= 2. std is the sample standard deviation (divisor G - 1).
        kind: one of the three names.
        tolerance: rewards that differ by at most this are equal, >= 0.
    Returns:
        (P, G) float32.
    Source: GRPO arXiv:2402.03300, Dr.GRPO arXiv:2503.20783, RLOO arXiv:2402.14740.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must have shape (P, G) with G >= 2, got {tuple(rewards.shape)}")
    rewards = rewards.double()
    centred = rewards - rewards.mean(1, keepdim=True)
    centred = torch.where(rewards.amax(1, keepdim=True) - rewards.amin(1, keepdim=True) <= tolerance, 0.0, centred)
    if kind == "group_std":
        centred = centred / (rewards.std(1, keepdim=True) + STD_FLOOR)
    elif kind == "rloo":
        centred = centred * (rewards.shape[1] / (rewards.shape[1] - 1))
    elif kind != "group_mean":
        raise ValueError(f"advantage must be one of group_std, group_mean, rloo, got {kind!r}")
    return centred.float()


def group_accuracy(rewards: Tensor) -> Tensor:
    """Return the mean reward of each prompt, (P,) float32, in [0, 1]."""
    return rewards.double().mean(1).float()


def overlong_penalty(length: int, max_new_tokens: int, buffer: int, penalty: float) -> float:
    """Return what is added to the reward of a response of `length` tokens: 0 up to the buffer, then down to -penalty at max_new_tokens.

        -penalty * max(0, length - (max_new_tokens - buffer)) / buffer

    Args:
        length: at most max_new_tokens.
        buffer: tokens at the end in which the penalty grows; 0 is off.
    Source: DAPO arXiv:2503.14476, equation 13, where penalty = 1.
    """
    return -penalty * max(0, length - (max_new_tokens - buffer)) / buffer if buffer else 0.0
