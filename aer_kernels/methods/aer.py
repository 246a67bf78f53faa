"""Adaptive entropy regularization: an entropy bonus whose coefficient a controller adapts, with a weight for each prompt.

    entropy_coef_t = alpha w(q(t))

alpha and w come from `aer_kernels.entropy_control`; its module `config` has the formulas (C1)-(C14). The kinds fixed, bang_bang,
proportional, integral, log_pi, self_tuned and balance are other rules for alpha. Kind off leaves plain GRPO.

Source: arXiv:2510.10959 names the parts; the formulas are this project's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aer_kernels.entropy_control import AdaptiveEntropyController, EntropyControlConfig
from aer_kernels.methods.seam import Measured, TokenBatch, TokenTerms


class AER:
    """`AdaptiveEntropyController` as a method. It gives each token an entropy coefficient, and holds entropy at a target."""

    Config = EntropyControlConfig
    needs_entropy = False

    def __init__(self, config: EntropyControlConfig) -> None:
        self.controller = AdaptiveEntropyController(config)
        self.needs_logprobs = config.surplus is not None
        self.learns = config.enabled and (config.kind != "fixed" or config.patience is not None)

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        ctl = self.controller
        weights = ctl.weights(tokens.accuracy, self._entropy_of_prompts(tokens))
        held = None if ctl.config.held == "all" else ctl.held(tokens.accuracy)[tokens.prompt_of_token]
        return TokenTerms(entropy_coef=weights[tokens.prompt_of_token], entropy_scale=ctl.alpha, held=held)

    def _entropy_of_prompts(self, tokens: TokenBatch) -> Tensor | None:
        """H(q) of (C1), (P,) nats: the mean of -logprob over a prompt's samples, an unbiased estimate. None where nobody needs it."""
        config = self.controller.config
        if config.surplus is None:
            return None
        per_response = tokens.per_prompt(tokens.per_response(-tokens.logprobs.double()))
        if config.quantity == "response":
            return per_response
        return per_response / tokens.per_prompt(tokens.per_response(torch.ones_like(tokens.logprobs))).clamp(min=1)

    def update(self, measured: Measured) -> None:
        config = self.controller.config
        count = measured.tokens if config.quantity == "token" else measured.responses
        self.controller.update(measured.entropy, count, measured.slopes, measured.unsolved)

    def status(self) -> dict[str, float | None]:
        ctl = self.controller
        return {
            "coef": ctl.alpha,
            "saturated": int(ctl.saturated),
            "controlled": ctl.last_entropy,
            "smoothed": ctl.smoothed_entropy,
            "target": ctl.target if ctl.enabled and ctl.acts else None,
            "initial": ctl.initial_entropy,
        }

    def state_dict(self) -> dict[str, Any]:
        return self.controller.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.controller.load_state_dict(state)
