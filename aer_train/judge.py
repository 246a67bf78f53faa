"""From the groups of a step to a batch: advantages within each group, and alpha * w(q) of each prompt for its samples."""

from __future__ import annotations

import torch

from aer_kernels import AdaptiveEntropyController
from aer_train.advantage import group_accuracy, group_advantages
from aer_train.config import TrainConfig
from aer_train.types import Batch, Group


def judge(groups: list[Group], controller: AdaptiveEntropyController, config: TrainConfig) -> Batch:
    """Return the batch that these groups make under the present entropy coefficient."""
    rewards = torch.tensor([group.rewards for group in groups])
    advantages = group_advantages(rewards, config.objective.advantage).flatten().tolist()
    coefficients = controller.coefficients(group_accuracy(rewards))
    trained = [True] * len(advantages)
    return Batch(groups, advantages, coefficients.repeat_interleave(rewards.shape[1]).tolist(), trained)
