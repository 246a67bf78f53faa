"""Clip-Cov: a few tokens drawn from those with an extreme covariance carry no policy gradient.

    weight_t = 0 for max(1, int(share N)) tokens, drawn at random among those with low < cov_t < high, else 1          N loss tokens

cov_t is that of `covariance`. The bounds of the ratio are wide open, as in the authors' scripts: the drawn tokens take their place. The
normaliser stays that of all tokens.

Source: arXiv:2505.22617, released form (PRIME-RL/Entropy-Mechanism-of-RL 8850579) with its constants. What differs: means and the number of
drawn tokens are those of the update, not of each micro-batch, where "at least 1" decides (64 tokens for 1 of 8,000 in 64 micro-batches);
the covariance is that of the policy that sampled, also for later updates on a batch; a draw is a function of seed, response and position.
"""

from __future__ import annotations

from dataclasses import dataclass

from aer_kernels.methods.covariance import part_of, token_covariance
from aer_kernels.methods.seam import Stateless, TokenBatch, TokenTerms, check_option
from aer_kernels.methods.selection import draws, largest_of


@dataclass(frozen=True)
class ClipCovConfig:
    """Options of Clip-Cov."""

    kind: str = "clip_cov"
    share: float = 2e-4
    """Of the loss tokens that are drawn, in [0, 1]."""
    low: float = 1.0
    """Covariance above which a token may be drawn."""
    high: float = 5.0
    """Covariance below which a token may be drawn, > low."""
    clip_low: float | None = 1.0
    clip_high: float | None = 1.0
    """Bounds of the ratio, >= 0. None: the trainer's."""

    def __post_init__(self) -> None:
        check_option("share", self.share, 0 <= self.share <= 1, "be in [0, 1]")
        check_option("high", self.high, self.high > self.low, f"be > low ({self.low})")
        for name in ("clip_low", "clip_high"):
            bound = getattr(self, name)
            check_option(name, bound, bound is None or bound >= 0, "be >= 0 or None")


class ClipCov(Stateless):
    """Clip-Cov as a method."""

    Config = ClipCovConfig

    def __init__(self, config: ClipCovConfig) -> None:
        self.config = config

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        covariance = token_covariance(tokens)
        among = (covariance > self.config.low) & (covariance < self.config.high)
        drawn = largest_of(draws(tokens), among, part_of(len(covariance), self.config.share), tie=0.0)
        return TokenTerms(weight=(~drawn).float(), clip_low=self.config.clip_low, clip_high=self.config.clip_high)
