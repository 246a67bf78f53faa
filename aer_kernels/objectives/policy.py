"""Token-level policy objectives (PPO clip, CISPO, divergence from a reference) in closed form: value, slope and clip flags.

The equation numbers are those of `aer_kernels.reference`, which has the values; here are their slopes, which no autograd computes.
Everything is (N,) tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from aer_kernels.reference import MAX_LOG_RATIO, divergence, policy_surrogate, rollout_weights

Objective = Literal["ppo", "cispo"]
Divergence = Literal["k1", "abs_k1", "k2", "k3"]


@dataclass(frozen=True)
class Surrogate:
    """Constants of equations (6)-(8)."""

    kind: Objective
    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl: Divergence = "k3"
    rollout_cap: float = 2.0


class PolicyInputs(NamedTuple):
    """Per-token inputs of the loss, (N,) fp32, for the loss tokens only."""

    advantages: Tensor
    """Advantage times given importance weight: the two only ever appear as a product in the loss."""
    weights: Tensor
    """n_n * normalizer of equation (9): 1, or the sequence weight; O(1), so that low-precision gradients do not underflow."""
    entropy_weights: Tensor
    """m_n * entropy_coef_n * normalizer of equation (9)."""
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    kl_coef: Tensor | None = None
    """None: the divergence is measured where ref_logprobs are given, and not in the loss."""
    rollout_logprobs: Tensor | None = None
    """Where the weight w_n comes from this pass's own log-probs."""

    def map(self, change: Callable[[Tensor], Tensor]) -> PolicyInputs:
        """The same with every tensor changed in one way (taken, sliced, masked)."""
        return PolicyInputs(*(None if x is None else change(x) for x in self))  # type: ignore[arg-type]

    def part(self, rows: slice | Tensor) -> PolicyInputs:
        """Some of the rows: views of a slice, copies of others."""
        return self.map(lambda x: x[rows])


class PolicyTokens(NamedTuple):
    """Per-token results, (N,) fp32 or bool."""

    loss: Tensor
    """weights * (-surrogate + kl_coef * k) - entropy_weights * H, so that its sum / normalizer is the loss (9)."""
    grad_logprobs: Tensor
    """d(sum loss)/d(logprobs) (15)."""
    log_ratio: Tensor
    """logprobs - old_logprobs, clamped (6)."""
    divergence: Tensor | None
    """k (8), nats; None without ref_logprobs."""
    clipped_low: Tensor
    clipped_high: Tensor
    clipped_dual: Tensor


def policy_tokens(logprobs: Tensor, entropy: Tensor, inputs: PolicyInputs, surrogate: Surrogate) -> PolicyTokens:
    """Evaluate equations (6)-(9) and (15) for each token."""
    advantages, old = inputs.advantages, inputs.old_logprobs
    if inputs.rollout_logprobs is not None:
        advantages = advantages * rollout_weights(logprobs, inputs.rollout_logprobs, surrogate.rollout_cap)
    log_ratio = torch.zeros_like(logprobs) if old is None else logprobs - old
    in_range = log_ratio.abs() <= MAX_LOG_RATIO
    log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    low, high = 1.0 - surrogate.clip_low, 1.0 + surrogate.clip_high
    below, above = ratio < low, ratio > high
    dual = torch.zeros_like(below)
    if surrogate.kind == "cispo":
        slope = ratio.clamp(low, high) * advantages
    else:
        above, below = above & (advantages > 0), below & (advantages < 0)
        if surrogate.dual_clip is not None:
            dual = (advantages < 0) & (ratio > surrogate.dual_clip)
        slope = torch.where(above | below | dual | ~in_range, 0.0, ratio * advantages)
    bounds = (surrogate.kind, surrogate.clip_low, surrogate.clip_high, surrogate.dual_clip)
    loss, grad, k = -policy_surrogate(logprobs, old, advantages, *bounds), -slope, None
    if inputs.ref_logprobs is not None:
        k = divergence(logprobs, inputs.ref_logprobs, surrogate.kl)
        if inputs.kl_coef is not None:
            loss = loss + inputs.kl_coef * k
            grad = grad + inputs.kl_coef * divergence_slope(logprobs - inputs.ref_logprobs, surrogate.kl)
    total = inputs.weights * loss - inputs.entropy_weights * entropy
    return PolicyTokens(total, inputs.weights * grad, log_ratio, k, below, above, dual)


def divergence_slope(distance: Tensor, kind: Divergence) -> Tensor:
    """dk/dlogp of (15) from logprobs - ref_logprobs."""
    if kind == "k1":
        slope = torch.ones_like(distance)
    elif kind == "abs_k1":
        slope = distance.sign()
    elif kind == "k2":
        slope = distance
    else:
        slope = 1.0 - (-distance).clamp(max=MAX_LOG_RATIO).exp()
    return torch.where(distance.abs() <= MAX_LOG_RATIO, slope, 0.0)


def may_have_gradient(inputs: PolicyInputs) -> Tensor:
    """(N,) bool: False where the gradient is exactly zero whatever the log-prob turns out to be (no advantage, no bonus, no divergence)."""
    found = (inputs.advantages * inputs.weights != 0) | (inputs.entropy_weights != 0)
    return found if inputs.kl_coef is None else found | (inputs.kl_coef * inputs.weights != 0)


METRICS = (
    "num_tokens",
    "num_grad_tokens",
    "clip_frac",
    "clip_frac_low",
    "clip_frac_high",
    "clip_frac_dual",
    "ratio_mean",
    "ratio_max",
    "approx_kl",
    "entropy",
    "ref_kl",
)
"""What `policy_metrics` returns, in order."""


def policy_metrics(tokens: PolicyTokens, entropy: Tensor, inputs: PolicyInputs, keep: Tensor) -> Tensor:
    """METRICS over the tokens at which `keep` holds, (len(METRICS),) float64, without a device sync; all 0 when there is none."""
    count = keep.sum()

    def mean(x: Tensor) -> Tensor:
        return (x.float().masked_fill(~keep, 0.0).sum() / count.clamp(min=1)).double()

    ratio = tokens.log_ratio.exp()
    return torch.stack(
        [
            count.double(),
            (keep & ((tokens.grad_logprobs != 0) | (inputs.entropy_weights != 0))).sum().double(),
            mean(tokens.clipped_low | tokens.clipped_high | tokens.clipped_dual),
            mean(tokens.clipped_low),
            mean(tokens.clipped_high),
            mean(tokens.clipped_dual),
            mean(ratio),
            torch.cat([ratio.masked_fill(~keep, 0.0), ratio.new_zeros(1)]).amax().double(),
            mean(ratio - 1.0 - tokens.log_ratio),
            mean(entropy),
            mean(torch.zeros_like(ratio) if tokens.divergence is None else tokens.divergence),
        ]
    )
