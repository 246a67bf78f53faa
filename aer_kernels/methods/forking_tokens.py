"""The 80/20 mask: only the tokens of highest entropy, where the policy could go several ways, carry a policy gradient.

    weight_t = 1 for the `share` of the update's loss tokens with the largest entropy, and for what ties with them; else 0

The normaliser stays that of all tokens. A masked token counts as one whose gradient is zero, and costs no product.

Source: arXiv:2506.01939, with its share of 20 %. There the share is of a micro-batch; here it is of the whole update.
"""

from __future__ import annotations

from dataclasses import dataclass

from aer_kernels.methods.seam import Stateless, TokenBatch, TokenTerms, check_option
from aer_kernels.methods.selection import largest


@dataclass(frozen=True)
class ForkingTokensConfig:
    """Options of the 80/20 mask."""

    kind: str = "forking_tokens"
    share: float = 0.2
    """Share of the loss tokens that carry a policy gradient, in (0, 1]."""

    def __post_init__(self) -> None:
        check_option("share", self.share, 0 < self.share <= 1, "be in (0, 1]")


class ForkingTokens(Stateless):
    """The 80/20 mask as a method. It sets the weight of each token to 0 or 1, and needs a forward pass for the entropies."""

    Config = ForkingTokensConfig
    needs_entropy = True
    needs_logprobs = False

    def __init__(self, config: ForkingTokensConfig) -> None:
        self.config = config

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        entropy = tokens.need("entropy")
        return TokenTerms(weight=largest(entropy, max(1, round(self.config.share * entropy.numel()))).float())
