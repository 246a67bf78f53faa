"""STARE: while entropy is below its target, the tokens that surprised the policy most count more where they were rewarded.

    weight_t = W      for the `share` of the tokens with A > 0 that have the lowest log-probs, at least one
    weight_t = 2 - W  for the same of the tokens with A < 0, with two_sided
    weight_t = 1      for all others, and for all while H >= target
    W <- clip(W + step sgn(target - H), 1, most)                                            once an update

Source: arXiv:2606.19236, released form (hp-luo/STARE bffb9e7): one_sided is its variant O1, two_sided its C2, and step 0 its fixed weights
(0.01 where they adapt). Models from 14B on had W = 1.05. What differs: the tokens are chosen among all of the update, not of each
micro-batch (in a batch of 6 responses 6 weights move with the cut); log-probs are those of the policy that sampled, also for later updates
on a batch; the lower weight mirrors W, as it does in the authors' scripts; the state is saved. The authors train with a dual clip of 10 and
one update on each batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from aer_kernels.entropy_control import Regulator
from aer_kernels.entropy_control.rules import Plain
from aer_kernels.methods.controlled import Controlled, ControlledConfig, EntropyOf
from aer_kernels.methods.seam import TokenBatch, TokenTerms, check_option
from aer_kernels.methods.selection import EXACT, largest_of
from aer_kernels.validate import check_choice

Variant = Literal["one_sided", "two_sided"]


@dataclass(frozen=True)
class StareConfig(ControlledConfig):
    """Options of STARE."""

    BOUND: ClassVar[str | None] = "most"

    kind: str = "stare"
    target: float | None = 0.3
    """Mean entropy of a token, nats, below which tokens are weighed. None: tau times the initial entropy."""
    share: float = 0.1
    """Of the tokens of each sign that are weighed, in [0, 1]."""
    weight: float = 1.1
    """W before the first update, in [1, most]."""
    variant: Variant = "one_sided"
    """Whether tokens with a negative advantage are weighed too."""
    step: float = 0.0
    """What W moves by at each update, >= 0."""
    most: float = 1.5
    """Largest W, in [1, 2]."""
    entropy_of: EntropyOf = "batch"
    """Whose entropy opens the gate. batch: this update's, which costs a forward pass. last: that of the update before, which is free."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("share", self.share, 0 <= self.share <= 1, "be in [0, 1]")
        check_option("most", self.most, 1 <= self.most <= 2, "be in [1, 2]")
        check_option("weight", self.weight, 1 <= self.weight <= self.most, f"be in [1, most = {self.most}]")
        check_option("step", self.step, self.step >= 0, "be >= 0")
        check_choice("variant", self.variant, get_args(Variant))
        check_choice("entropy_of", self.entropy_of, get_args(EntropyOf))


class Stare(Controlled):
    """STARE as a method."""

    Config = StareConfig
    MOVES = "surprising_weight"

    def __init__(self, config: StareConfig) -> None:
        self.config, self.needs_entropy = config, config.entropy_of == "batch"
        rule = Plain(lambda seen, now: now + config.step * seen.side)
        self.regulator = Regulator(config, rule, config.weight, (1.0, config.most), neutral=1.0)

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        regulator, weight = self.present(tokens), torch.ones_like(tokens.logprobs)
        if regulator.below is not False:
            weight[self._most_surprising(tokens, tokens.advantages > 0)] = regulator.value
            if self.config.variant == "two_sided":
                weight[self._most_surprising(tokens, tokens.advantages < 0)] = 2.0 - regulator.value
        return TokenTerms(weight=weight)

    def _most_surprising(self, tokens: TokenBatch, among: Tensor) -> Tensor:
        count = math.ceil(self.config.share * int(among.sum()) - EXACT)
        return largest_of(-tokens.logprobs, among, count, EXACT)
