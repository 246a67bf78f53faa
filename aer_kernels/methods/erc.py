"""Entropy ratio clipping: a token whose entropy has moved too far from what it was at sampling carries no policy gradient.

    weight_t = 1 where low < H_t now / H_t old < high, else 0

H now is that of the present policy, so that the weights are decided anew before each update on a batch after the first; at the first all
ratios are 1. That costs a forward pass for the old entropies and one for each further update (8 NVD in place of 6 at the head).

Source: arXiv:2512.05591, released form (Kwai-Klear/ERC f1885c5) with the bounds of its scripts. What differs: a dropped token has no loss
either (the release keeps its value, without a gradient), and entropies that differ by less than the rounding of a pass count as equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aer_kernels.methods.seam import Stateless, TokenBatch, TokenTerms, check_option

ROUNDING = 1e-6
"""Nats: what two passes of one policy may differ by."""

NEAR_ZERO = 1e-8
"""Nats, added to both entropies."""


@dataclass(frozen=True)
class ERCConfig:
    """Options of entropy ratio clipping."""

    kind: str = "erc"
    low: float = 0.95
    """Smallest ratio of the entropies, in [0, 1)."""
    high: float = 1.05
    """Largest ratio of the entropies, > 1."""

    def __post_init__(self) -> None:
        check_option("low", self.low, 0 <= self.low < 1, "be in [0, 1)")
        check_option("high", self.high, self.high > 1, "be > 1")


class ERC(Stateless):
    """Entropy ratio clipping as a method."""

    Config = ERCConfig
    needs_logprobs = False
    needs_entropy = True
    also_needs = frozenset({"current_entropy"})

    def __init__(self, config: ERCConfig) -> None:
        self.config = config

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        old = tokens.need("entropy")
        now = old if tokens.current_entropy is None else tokens.current_entropy
        ratio = (now + NEAR_ZERO) / (old + NEAR_ZERO)
        near = ((ratio > self.config.low) & (ratio < self.config.high)) | ((now - old).abs() <= ROUNDING)
        return TokenTerms(weight=torch.where(near, 1.0, 0.0))
