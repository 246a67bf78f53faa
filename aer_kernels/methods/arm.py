"""ARM (ProGRPO), our reading: a response that is less confident than its prompt gains, a more confident one loses.

    A_i <- A_i + alpha (c(q_i) - c(o_i))                                      for responses to prompts that pass the gate
    c(o) = exp(mean log-prob over the `share` of the response's tokens with the lowest log-probs, at least one token)
    c(q) = exp(mean log-prob over the prompt's tokens but the first)

The shift is the same for all tokens of a response, and carries no gradient. c(o) comes from the recorded log-probs; c(q) costs one forward
pass over the prompts.

Source: arXiv:2602.05281, our reading. The shift, c(o) and its 20 % are certain. Not known: alpha, which therefore has no default; the form
of c(q), here the inverse perplexity; and the gate, on which notes disagree. mixed_only leaves out groups that are all right or all wrong,
where the shift would be the only signal; none_right leaves out those that are all wrong. No code is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from aer_kernels.methods.seam import Stateless, TokenBatch, TokenTerms, check_option
from aer_kernels.methods.selection import ranks, spans
from aer_kernels.validate import check_choice

Gate = Literal["mixed_only", "none_right"]


@dataclass(frozen=True)
class ARMConfig:
    """Options of ARM."""

    kind: str = "arm"
    alpha: float | None = None
    """What a confidence of 1 takes from the advantage, >= 0. It must be given: the paper's value is not known."""
    share: float = 0.2
    """Of a response's tokens whose log-probs count, in (0, 1]."""
    gate: Gate = "mixed_only"
    """Which groups are left as they are. mixed_only: those that are all right or all wrong. none_right: those that are all wrong."""

    def __post_init__(self) -> None:
        check_option("alpha", self.alpha, self.alpha is None or self.alpha >= 0, "be >= 0")
        check_option("share", self.share, 0 < self.share <= 1, "be in (0, 1]")
        check_choice("gate", self.gate, get_args(Gate))


class ARM(Stateless):
    """ARM, our reading, as a method."""

    Config = ARMConfig
    also_needs = frozenset({"prompt_logprobs"})

    def __init__(self, config: ARMConfig) -> None:
        if config.alpha is None:
            raise ValueError("alpha must be given for kind 'arm', whose paper's value is not known, got None")
        self.config, self.alpha = config, config.alpha

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        accuracy = tokens.accuracy
        gated = (accuracy > 0) & (accuracy < 1) if self.config.gate == "mixed_only" else accuracy > 0
        prompts, responses = tokens.need("prompt_logprobs").double().exp(), response_confidence(tokens, self.config.share)
        shift = torch.where(gated[tokens.prompt], self.alpha * (prompts[tokens.prompt] - responses), 0.0)
        return TokenTerms(shift=shift[tokens.response].float())


def response_confidence(tokens: TokenBatch, share: float) -> Tensor:
    """(R,) float64: c(o) of each response; 1 for one without tokens."""
    _, counts = spans(tokens)
    number = (share * counts).round().clamp(min=1)
    low = ranks(tokens, tokens.logprobs) < number[tokens.response]
    return (tokens.per_response(torch.where(low, tokens.logprobs, 0.0)) / number).exp()
