"""A method as a user writes one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aer_kernels.methods import Stateless, TokenBatch, TokenTerms


@dataclass(frozen=True)
class OwnConfig:
    kind: str = "tests.kernels.own_method.Own"
    amount: float = 0.5


class Own(Stateless):
    Config = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        self.amount = config.amount

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        return TokenTerms(shift=torch.full_like(tokens.logprobs, self.amount))
