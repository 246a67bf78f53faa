"""Entropy-shaped advantages: tokens at which the policy could go several ways count for more.

    A_t <- A_t + min(alpha H_t, |A_t| / kappa)

kappa > 1 keeps the sign of every advantage. The added term carries no gradient. It rewards what was sampled in uncertain states, and lowers
entropy in the authors' runs.

Source: arXiv:2506.14758, paper form, with its constants for GRPO (alpha is 0.1 for PPO). A baseline in another release uses kappa = 1,
which can cancel a negative advantage altogether; it is refused here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aer_kernels.methods.seam import Stateless, TokenBatch, TokenTerms, check_option


@dataclass(frozen=True)
class EntropyAdvantageConfig:
    """Options of entropy-shaped advantages."""

    kind: str = "entropy_advantage"
    alpha: float = 0.4
    """What a nat of entropy adds to the advantage, >= 0."""
    kappa: float = 2.0
    """At most the advantage divided by this is added, > 1."""

    def __post_init__(self) -> None:
        check_option("alpha", self.alpha, self.alpha >= 0, "be >= 0")
        check_option("kappa", self.kappa, self.kappa > 1, "be > 1")


class EntropyAdvantage(Stateless):
    """Entropy-shaped advantages as a method."""

    Config = EntropyAdvantageConfig
    needs_logprobs = False
    needs_entropy = True

    def __init__(self, config: EntropyAdvantageConfig) -> None:
        self.config = config

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        return TokenTerms(shift=torch.minimum(self.config.alpha * tokens.need("entropy"), tokens.advantages.abs() / self.config.kappa))
