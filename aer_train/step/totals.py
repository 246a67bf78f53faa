"""Sums and maxima over the micro-batches of a step. They stay on the device until they are read, so that it is not waited for."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from aer_kernels.integrations.control import held_sums
from aer_kernels.objectives.entropy_change import EntropySlopes, entropy_slopes
from aer_train import dist
from aer_train.step.batching import MicroBatch
from aer_train.step.loss import policy_token_weights
from aer_train.step.mismatch import MAXIMA, SUMS, mismatch_terms
from aer_train.step.objective import Objective

HELD = ("held", "held_tokens", "held_responses")
"""Entropy, tokens and responses, each as much as it is held (`TokenTerms.held`)."""

MEANS = ("clip_frac", "ratio_mean", "approx_kl")


class Totals:
    """What a step measures on the way."""

    NAMES = ("entropy", *HELD, *EntropySlopes._fields, *SUMS, "measured", "weight", *MEANS, "ref_kl", "positions", "padding")
    LARGEST = ("ratio_max", *MAXIMA)

    def __init__(self, device: torch.device) -> None:
        self._sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in self.NAMES}
        self._maxima = {name: torch.zeros((), dtype=torch.float64, device=device) for name in self.LARGEST}

    def add_sampling_policy(
        self, batch: MicroBatch, logprobs: Tensor, entropy: Tensor, objective: Objective, kept: Tensor | None = None
    ) -> None:
        """From a pass of the policy that sampled: its entropy, how far its log-probs are from those recorded at sampling, and where
        policy gradient and bonus move the entropy. The entropy that is held is `kept`, where the method has a set of its own."""
        mask = batch.loss_mask
        self._sums["measured"] += batch.loss_tokens
        self._sums["entropy"] += entropy.double().sum()
        for name, value in zip(HELD, held_sums(entropy if kept is None else kept, mask, batch.held), strict=True):
            self._sums[name] += value
        terms = mismatch_terms(logprobs, batch.rollout_logprobs, mask, objective.mismatch, objective.config.mismatch_cap)
        for name in SUMS:
            self._sums[name] += terms[name]
        for name in MAXIMA:
            self._maxima[name] = torch.maximum(self._maxima[name], terms[name])
        advantages = batch.advantages if batch.weights is None else batch.advantages * batch.weights
        advantages = advantages * policy_token_weights(batch, objective)
        bonus = batch.entropy_coef if kept is None else torch.zeros_like(batch.entropy_coef)  # it does not raise this entropy
        slopes = entropy_slopes(logprobs, entropy, advantages=advantages, weights=bonus, loss_mask=mask)
        for name, slope in zip(slopes._fields, slopes, strict=True):
            self._sums[name] += slope

    def add_recorded(self, surprisal: np.ndarray, held: np.ndarray) -> None:
        """From a response that was in no pass: the surprisals (T,) of its tokens, nats, estimate their entropies. Each is held as much as
        `TokenTerms.held` says."""
        self._sums["entropy"] += float(surprisal.sum())
        for name, value in zip(HELD, ((held * surprisal).sum(), held.sum(), held.mean()), strict=True):
            self._sums[name] += float(value)

    def add_unmoved(self, weight: float) -> None:
        """From tokens (or responses) under the policy that sampled them, by its very definition: their ratios are 1."""
        if weight:
            self._sums["weight"] += weight
            self._sums["ratio_mean"] += weight
            self._maxima["ratio_max"].clamp_(min=1.0)

    def add_update(self, batch: MicroBatch, metrics: dict[str, Tensor], weight: float) -> None:
        """From the pass of an update: means over `weight` tokens (or responses), the divergence from the reference, and how much of the
        pass was padding."""
        self._sums["positions"] += batch.input_ids.numel()
        self._sums["padding"] += batch.padding
        self._sums["weight"] += weight
        for name in MEANS:
            if name in metrics:
                self._sums[name] += weight * metrics[name].double()
        if batch.reference is not None:
            self._sums["ref_kl"] += batch.loss_tokens * metrics["ref_kl"].double()
        self._maxima["ratio_max"] = torch.maximum(self._maxima["ratio_max"], metrics["ratio_max"].double())

    def read(self) -> dict[str, float]:
        """Return all of them by name, over the micro-batches of all ranks."""
        names = [*self._sums, *self._maxima]
        everywhere = zip(*dist.all_gather(torch.stack([*self._sums.values(), *self._maxima.values()]).tolist()), strict=True)
        return {name: max(values) if name in self._maxima else math.fsum(values) for name, values in zip(names, everywhere, strict=True)}
