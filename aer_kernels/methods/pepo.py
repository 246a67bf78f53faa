"""PEPO: in responses that were rewarded, tokens count by their entropy relative to their neighbours'.

    e_t      = exp(H_t) / sum of exp(H) over a window of `window` tokens centred at t
    weight_t = T e_t / sum of e over the response, where A_t > 0, else 1                   T tokens of the response

The weights of a response add up to its length, and adding a constant to all its entropies changes nothing. A window ends where the response
does.

Source: arXiv:2609.39402 (NeurIPS 2026), paper form, with its window. No code is known. What differs: "rewarded" is A > 0, which for rewards
of 0 and 1 is the same wherever there is a gradient; the weight is not negative, so that it may stand outside the surrogate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aer_kernels.methods.seam import Stateless, TokenBatch, TokenTerms, check_option
from aer_kernels.methods.selection import spans


@dataclass(frozen=True)
class PEPOConfig:
    """Options of PEPO."""

    kind: str = "pepo"
    window: int = 101
    """Tokens that a token is compared with, itself included: odd, >= 1."""

    def __post_init__(self) -> None:
        check_option("window", self.window, self.window >= 1 and self.window % 2 == 1, "be odd and >= 1")


class PEPO(Stateless):
    """PEPO as a method."""

    Config = PEPOConfig
    needs_logprobs = False
    needs_entropy = True

    def __init__(self, config: PEPOConfig) -> None:
        self.config = config

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        return TokenTerms(weight=torch.where(tokens.advantages > 0, relative_entropy(tokens, self.config.window), 1.0).float())


def relative_entropy(tokens: TokenBatch, window: int) -> Tensor:
    """(N,) float64: T e_t / sum e of each token."""
    odds = tokens.need("entropy").double().exp()
    starts, counts = (values[tokens.response] for values in spans(tokens))
    sums = torch.cat([odds.new_zeros(1), odds.cumsum(0)])
    place = torch.arange(len(odds), device=odds.device)
    low = torch.maximum(place - window // 2, starts)
    high = torch.minimum(place + window // 2 + 1, starts + counts)
    share = odds / (sums[high] - sums[low])
    return counts * share / tokens.per_response(share)[tokens.response]
