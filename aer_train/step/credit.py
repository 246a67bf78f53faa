"""From the groups of a step to a batch: what each response is worth, and which responses are trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aer_train.config.tree import TrainConfig
from aer_train.step.advantage import group_accuracy, group_advantages, overlong_penalty
from aer_train.types import Batch, Group


def assign_credit(groups: list[Group], config: TrainConfig, bonus: Tensor | None = None) -> Batch:
    """Return the batch that these groups make: advantages come from the shaped rewards, accuracy from what reward.kind gave alone.

    Groups may have different sizes. With reward.on_failure mask a response without a verdict counts nowhere, and a group in which fewer
    than two are left has no advantages.

    Args:
        bonus: (R,) what a method adds to the reward of each response.
    """
    rewards = _shaped_rewards(groups, config)
    if bonus is not None:
        rewards = rewards + bonus.view(rewards.shape)
    mask = config.reward.on_failure == "mask"
    counts = [not mask or verdict.judged for group in groups for verdict in group.verdicts]
    accuracies = torch.tensor([accuracy for group in groups for accuracy in group.accuracies])
    advantages, accuracy = torch.zeros(len(counts)), torch.zeros(len(groups))
    for places, rows in _by_size(groups, counts):
        if rows.shape[1] > 1:
            advantages[rows] = group_advantages(rewards[rows], config.objective.advantage, config.reward.tolerance)
        accuracy[places] = group_accuracy(accuracies[rows])
    samples = [sample for group in groups for sample in group.samples]
    trained = [counted and (config.rollout.overlong == "keep" or sample.finished) for counted, sample in zip(counts, samples, strict=True)]
    return Batch(groups, rewards.tolist(), advantages.tolist(), trained, accuracy.tolist())


def _by_size(groups: list[Group], counts: Sequence[bool]) -> list[tuple[list[int], Tensor]]:
    """Groups of the same number of responses that count: which they are, and the (P, G) numbers of those responses."""
    found: dict[int, tuple[list[int], list[list[int]]]] = {}
    start = 0
    for place, group in enumerate(groups):
        stop = start + len(group.samples)
        rows = [row for row in range(start, stop) if counts[row]]
        start = stop
        if rows:
            places, tables = found.setdefault(len(rows), ([], []))
            places.append(place)
            tables.append(rows)
    return [(places, torch.tensor(tables)) for places, tables in found.values()]


def _shaped_rewards(groups: list[Group], config: TrainConfig) -> Tensor:
    """(R,) float32"""
    limit, reward = config.rollout.max_new_tokens, config.reward
    penalties = [
        overlong_penalty(len(sample.tokens), limit, reward.overlong_buffer, reward.overlong_penalty)
        for group in groups
        for sample in group.samples
    ]
    return torch.tensor([reward for group in groups for reward in group.rewards]) + torch.tensor(penalties)
