"""SIREN: the entropy of the tokens at which each response was least certain is held at what it was at first, by a squared distance.

    loss + beta (Hbar - anchor)^2,   Hbar = mean over responses of the mean of H over the response's peaks
    H: entropy over the tokens before the one with which top_p is reached             a peak: H_t above its own response's `share` quantile
    anchor = Hbar of the first update

Its gradient is that of an entropy bonus with the coefficient entropy_coef_t = 2 beta (anchor - Hbar) / (peaks of the response) / (responses
with peaks) on the peaks, times the loss tokens that the entropy term is divided by: negative while entropy is above the anchor. Hbar is
that of the whole update.

Source: arXiv:2509.25133, released form (Linn3a/siren fa59a8d) with its constants; top_p = None is its ablation on the full distribution.
What differs from the release: Hbar is that of the update, not of each micro-batch against an anchor of the whole batch; the anchor is part
of the state, not a metric that may be missing; top_p is not sought among the first 10,000 tokens alone. Where one token has top_p by
itself, H is 0 without a gradient, as in the release. The policy term there is that of Dr.GRPO (objective.advantage group_mean,
objective.aggregation constant) with bounds of 0.28 on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from aer_kernels.kept_set import KeptSet
from aer_kernels.methods.seam import Measured, TokenBatch, TokenTerms, check_option, restored
from aer_kernels.methods.selection import quantiles

ROUNDING = 1e-5
"""Nats: a token is no peak unless its entropy is above the quantile by more than two passes may differ."""


@dataclass(frozen=True)
class SIRENConfig:
    """Options of SIREN."""

    kind: str = "siren"
    beta: float = 0.005
    """Coefficient of the squared distance, 1/nats, >= 0."""
    top_p: float | None = 0.8
    """Probability that the tokens that entropy is over do not reach, in (0, 1). None: all tokens."""
    share: float = 0.8
    """Of a response's tokens that are no peaks, in [0, 1)."""

    def __post_init__(self) -> None:
        check_option("beta", self.beta, self.beta >= 0, "be >= 0")
        check_option("top_p", self.top_p, self.top_p is None or 0 < self.top_p < 1, "be in (0, 1) or None")
        check_option("share", self.share, 0 <= self.share < 1, "be in [0, 1)")


class SIREN:
    """SIREN as a method."""

    Config = SIRENConfig
    needs_logprobs = False
    needs_entropy = False
    also_needs: frozenset[str] = frozenset()

    def __init__(self, config: SIRENConfig) -> None:
        self.config = config
        self.kept = None if config.top_p is None else KeptSet(top_p=config.top_p, crossing=False)
        self.needs_entropy = self.kept is None
        if self.kept is not None:
            self.also_needs = frozenset({"kept_entropy"})
        self._state: dict[str, Any] = {"anchor": None, "entropy": None}

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        entropy = tokens.need("entropy" if self.kept is None else "kept_entropy")
        share = peak_shares(tokens, entropy, self.config.share)
        responses = float(share.sum())
        mean = float((share * entropy.double()).sum()) / max(1.0, responses)
        anchor = mean if self._state["anchor"] is None else self._state["anchor"]
        coef = (share * (len(share) / max(1.0, responses))).float()
        return TokenTerms(entropy_coef=coef, entropy_scale=2 * self.config.beta * (anchor - mean), held=share.float())

    def update(self, measured: Measured) -> None:
        if measured.tokens:
            mean = measured.entropy / measured.tokens
            self._state = {"anchor": mean if self._state["anchor"] is None else self._state["anchor"], "entropy": mean}

    def status(self) -> dict[str, float | None]:
        return {"controlled": self._state["entropy"], "target": self._state["anchor"], "initial": self._state["anchor"]}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = restored(self._state, state)


def peak_shares(tokens: TokenBatch, entropy: Tensor, share: float) -> Tensor:
    """(N,) float64: 1 / (peaks of its response) for a peak, else 0. A response all of whose tokens are alike has none."""
    peaks = entropy > quantiles(tokens, entropy, share)[tokens.response] + ROUNDING
    counts = tokens.per_response(peaks.double())
    return peaks.double() / counts.clamp(min=1)[tokens.response]
