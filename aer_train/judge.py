"""From the groups of a step to a batch: what each response is worth, how much entropy pressure its prompt gets, and what is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from aer_kernels import AdaptiveEntropyController
from aer_train.advantage import group_accuracy, group_advantages, overlong_penalty
from aer_train.config import TrainConfig
from aer_train.types import Batch, Group


def judge(groups: list[Group], controller: AdaptiveEntropyController, config: TrainConfig) -> Batch:
    """Return the batch that these groups make under the present entropy coefficient.

    Advantages come from the shaped rewards, the weights w(q) from the accuracy and what the samples say of the entropy.
    """
    rewards = _shaped_rewards(groups, config)
    advantages = group_advantages(rewards, config.objective.advantage, config.reward.tolerance)
    accuracy, entropy, size = _accuracy(groups), _entropy(groups, config), rewards.shape[1]
    each = (controller.weights(accuracy, entropy), controller.coefficients(accuracy, entropy), controller.held(accuracy))
    weights, coefficients, held = (values.repeat_interleave(size).tolist() for values in each)
    trained = [config.rollout.overlong == "keep" or sample.finished for group in groups for sample in group.samples]
    return Batch(groups, rewards.flatten().tolist(), advantages.flatten().tolist(), coefficients, trained, weights, held)


def teaches(groups: list[Group], controller: AdaptiveEntropyController, config: TrainConfig) -> list[bool]:
    """Return which groups have an advantage that reaches a trained response."""
    batch = judge(groups, controller, config)
    return _any_trained(batch, batch.advantages).tolist()


def replaceable(groups: list[Group], controller: AdaptiveEntropyController, config: TrainConfig) -> list[bool]:
    """Return which groups rollout.refill replaces: those that teach nothing and, for no_signal, get no entropy pressure either.

    The pressure counts by the weight w(q), not by alpha * w(q): alpha is 0 until the controller needs it, and what a step samples must not
    flip with it.
    """
    batch = judge(groups, controller, config)
    kept = _any_trained(batch, batch.advantages)
    if config.rollout.refill == "no_signal" and controller.enabled:
        kept |= _any_trained(batch, batch.entropy_weight)
    return kept.logical_not().tolist()


def _any_trained(batch: Batch, values: list[float]) -> Tensor:
    """Return which groups have a trained response whose value is not 0."""
    found = (torch.tensor(values) != 0) & torch.tensor(batch.trained)
    return found.view(len(batch.groups), -1).any(1)


def _accuracy(groups: list[Group]) -> Tensor:
    return group_accuracy(torch.tensor([group.rewards for group in groups]))


def _entropy(groups: list[Group], config: TrainConfig) -> Tensor | None:
    """Return each prompt's entropy as its samples show it: the mean of -logprob, nats per token or response (entropy.quantity). None where
    nothing needs it: a step may have a million tokens."""
    if config.entropy.surplus is None:
        return None
    per_response = torch.tensor([[sample.surprisal for sample in group.samples] for group in groups]).mean(1)
    if config.entropy.quantity == "response":
        return per_response
    return per_response / torch.tensor([[len(sample.tokens) for sample in group.samples] for group in groups]).float().mean(1)


def _shaped_rewards(groups: list[Group], config: TrainConfig) -> Tensor:
    limit, reward = config.rollout.max_new_tokens, config.reward
    penalties = [
        [overlong_penalty(len(sample.tokens), limit, reward.overlong_buffer, reward.overlong_penalty) for sample in group.samples]
        for group in groups
    ]
    return torch.tensor([group.rewards for group in groups]) + torch.tensor(penalties)
