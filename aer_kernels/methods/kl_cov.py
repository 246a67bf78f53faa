"""KL-Cov: the tokens with the largest covariance are held near the policy that sampled them; the ratio is not clipped.

    loss_t = - r_t A_t + coef |logprob_t - old_logprob_t|   for the max(1, int(share N)) tokens with the largest cov_t
    loss_t = - r_t A_t                                      for the others                                             N loss tokens

cov_t is that of `covariance`. At the first update of a batch the distance is 0, and so is its gradient: the method needs more than one
update on each batch, and is refused otherwise. The distance is a term of the fused loss, and costs no product.

Source: arXiv:2505.22617, released form (PRIME-RL/Entropy-Mechanism-of-RL 8850579) with the constants of its 7B run; 2e-4 is that of the 32B
run, where verl's own default of coef is 0.1. What differs: means and tokens are those of the update, not of each micro-batch; the
covariance is that of the policy that sampled, also for later updates on a batch. Known of the release: unstable in long runs on Qwen3 (its
issue 20).
"""

from __future__ import annotations

from dataclasses import dataclass

from aer_kernels.methods.covariance import part_of, token_covariance
from aer_kernels.methods.seam import Stateless, TokenBatch, TokenTerms, check_option
from aer_kernels.methods.selection import EXACT, largest

UNBOUNDED = 1e6
"""A bound that no ratio reaches."""


@dataclass(frozen=True)
class KLCovConfig:
    """Options of KL-Cov."""

    kind: str = "kl_cov"
    share: float = 2e-3
    """Of the loss tokens that are held, in [0, 1]."""
    coef: float = 1.0
    """Coefficient of the distance, >= 0."""

    def __post_init__(self) -> None:
        check_option("share", self.share, 0 <= self.share <= 1, "be in [0, 1]")
        check_option("coef", self.coef, self.coef >= 0, "be >= 0")


class KLCov(Stateless):
    """KL-Cov as a method."""

    Config = KLCovConfig

    def __init__(self, config: KLCovConfig) -> None:
        self.config = config

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        covariance = token_covariance(tokens)
        held = largest(covariance, part_of(len(covariance), self.config.share), EXACT)
        return TokenTerms(divergence_coef=self.config.coef * held.float(), clip_low=1.0, clip_high=UNBOUNDED)
