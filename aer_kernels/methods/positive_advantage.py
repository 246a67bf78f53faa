"""Positive-advantage reweighting: while entropy is low, the policy term of tokens with a positive advantage counts less.

    weight_t = lambda where A_t > 0, else 1
    lambda <- clip(lambda - step, 0, 1) where H < target, else clip(lambda + step, 0, 1)          once an update

A sampled token with a positive advantage takes probability from all others, and that concentrates a policy. At lambda = 0 such tokens cost
no product. H is the mean entropy of a token.

Source: arXiv:2511.05993 (Findings of ACL 2026), paper form: its schedule guided by entropy, with its constants. No defect is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aer_kernels.entropy_control import Regulator
from aer_kernels.entropy_control.rules import Plain
from aer_kernels.methods.controlled import Controlled, ControlledConfig
from aer_kernels.methods.seam import TokenBatch, TokenTerms, check_option


@dataclass(frozen=True)
class PositiveAdvantageConfig(ControlledConfig):
    """Options of positive-advantage reweighting."""

    kind: str = "positive_advantage"
    target: float | None = 0.2
    """lambda falls while the mean entropy of a token is below this, in nats. None: tau times the initial entropy."""
    step: float = 0.05
    """How far lambda moves at each update, in [0, 1]."""
    start: float = 0.0
    """lambda before the first update, in [0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("step", self.step, 0 <= self.step <= 1, "be in [0, 1]")
        check_option("start", self.start, 0 <= self.start <= 1, "be in [0, 1]")


class PositiveAdvantage(Controlled):
    """Positive-advantage reweighting as a method. It sets the weight of each token, and adapts it to hold entropy at a target."""

    Config = PositiveAdvantageConfig
    MOVES = "positive_weight"
    needs_logprobs = False

    def __init__(self, config: PositiveAdvantageConfig) -> None:
        rule = Plain(lambda seen, now: now - config.step if seen.smoothed < seen.target else now + config.step)
        self.regulator = Regulator(config, rule, config.start, (0.0, 1.0), raises=-1, neutral=1.0)

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        return TokenTerms(weight=torch.where(tokens.advantages > 0, self.regulator.value, 1.0))
