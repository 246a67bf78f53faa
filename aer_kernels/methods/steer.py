"""STEER: the more a token's update changes entropy, the less it counts.

    weight_t = clamp(exp(- k m_t), least, 1),   k = - ln(least) / max(max m, 0.02)                        mapping exponential
    weight_t = most - (m_t - min m) (most - least) / (max m - min m); the middle where all are equal      mapping linear

    m_t = | A_t / p_t  p_t (1 - p_t) (ln p_t + H_t) |      form released
    m_t = | A_t        p_t (1 - p_t) (ln p_t + H_t) |      form theorem: a step that moves the sampled token's logit alone
    m_t = | A_t        p_t           (ln p_t + H_t) |      form slopes: a step along the whole policy gradient (`entropy_slopes`)
    m_t = | A_t  ( S_t - sum_v p_v S_v ) |                 form exact: the same, S_v = p_v (ln p_v + H_t)

p_t is the probability of the sampled token, H_t the entropy, both of the policy that sampled; min and max are over the update.

Source: arXiv:2510.10150. The first form is the released one (zz-haooo/STEER b31df71), the second the paper's theorem, with the constants of
the released scripts. The last two are this project's. exact is the first-order change of a row's entropy when the policy gradient moves all
logits of the row; its mean over the vocabulary costs a second look at the logits in the pass that measures entropy. slopes leaves that mean
out, which advantages that are centred cancel on average. What differs from the release: min and max are those of the update, not of each
micro-batch (weights there move by up to .28 with the cut), and p_t is that of the policy that sampled, also for later updates on a batch.
In the released form 1 / p_t lets one rare token set the scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from aer_kernels.methods.seam import Stateless, TokenBatch, TokenTerms, check_option
from aer_kernels.validate import check_choice

Form = Literal["released", "theorem", "slopes", "exact"]
Mapping = Literal["exponential", "linear"]

SMALLEST_SCALE = 0.02
"""Changes are never compared with less than this."""

NEAR_ZERO = 1e-8
"""Probabilities are kept away from 0, and in one factor from 1, by this much."""


@dataclass(frozen=True)
class SteerConfig:
    """Options of STEER."""

    kind: str = "steer"
    form: Form = "released"
    """How the change of entropy is estimated."""
    mapping: Mapping = "exponential"
    """How it becomes a weight."""
    least: float = 0.8
    """Weight of the largest change, in (0, 1]."""
    most: float = 1.2
    """linear: weight of the smallest change, >= least."""

    def __post_init__(self) -> None:
        check_choice("form", self.form, get_args(Form))
        check_choice("mapping", self.mapping, get_args(Mapping))
        check_option("least", self.least, 0 < self.least <= 1, "be in (0, 1]")
        check_option("most", self.most, self.most >= self.least, f"be >= least ({self.least})")


class Steer(Stateless):
    """STEER as a method."""

    Config = SteerConfig
    needs_entropy = True

    def __init__(self, config: SteerConfig) -> None:
        self.config = config
        self.also_needs = frozenset({"mean_surprise"}) if config.form == "exact" else frozenset()

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        if not tokens.logprobs.numel():
            return TokenTerms(weight=torch.ones_like(tokens.logprobs))
        change = entropy_change(tokens, self.config.form)
        return TokenTerms(weight=self._weights(change).float())

    def _weights(self, change: Tensor) -> Tensor:
        least, most = self.config.least, self.config.most
        if self.config.mapping == "exponential":
            scale = -math.log(least) / change.max().clamp(min=SMALLEST_SCALE)
            return (-scale * change).exp().clamp(least, 1.0)
        smallest, largest = change.min(), change.max()
        if largest == smallest:
            return torch.full_like(change, (least + most) / 2)
        return (most - (change - smallest) * ((most - least) / (largest - smallest))).clamp(least, most)


def entropy_change(tokens: TokenBatch, form: Form) -> Tensor:
    """(N,) float64: the size of each token's first-order change of entropy, up to a common factor."""
    logprobs = tokens.logprobs.double()
    p = logprobs.exp().clamp(NEAR_ZERO, 1 - NEAR_ZERO)
    change = tokens.advantages.double() * p * (p.log() + tokens.need("entropy").double())
    if form == "exact":
        change = change - tokens.advantages.double() * tokens.need("mean_surprise").double()
    if form in ("released", "theorem"):
        change = change * (1 - p)
    if form == "released":
        change = change / logprobs.exp().clamp(NEAR_ZERO, 1.0)
    return change.abs()
