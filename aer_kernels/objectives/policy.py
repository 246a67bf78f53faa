"""Token-level policy objectives (PPO clip, CISPO, KL to a reference) in closed form: value, slope and clip flags.

The equation numbers are those of `aer_kernels.reference`. Everything here is (N,) tensors; nothing is differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from aer_kernels.reference import MAX_LOG_RATIO

Objective = Literal["ppo", "cispo"]


@dataclass(frozen=True)
class ObjectiveConfig:
    """Constants of equations (6)-(8)."""

    kind: Objective
    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl_coef: float


class PolicyInputs(NamedTuple):
    """Per-token inputs of the loss, (N,) fp32, for the loss tokens only."""

    advantages: Tensor
    """Advantage times importance weight: the two only ever appear as a product in the loss."""
    weights: Tensor
    """n_n * normalizer of equation (9): 1, or the sequence weight; O(1), so that low-precision gradients do not underflow."""
    entropy_weights: Tensor
    """m_n * entropy_coef_n * normalizer of equation (9)."""
    old_logprobs: Tensor | None
    ref_logprobs: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> PolicyInputs:
        """The same with every tensor changed in one way (taken, sliced, masked)."""
        return PolicyInputs(*(None if x is None else change(x) for x in self))  # type: ignore[arg-type]

    def part(self, rows: slice | Tensor) -> PolicyInputs:
        """Some of the rows: views of a slice, copies of others."""
        return self.map(lambda x: x[rows])


class PolicyTokens(NamedTuple):
    """Per-token results, (N,) fp32 or bool."""

    loss: Tensor
    """weights * (-surrogate + kl_coef * k3) - entropy_weights * H, so that its sum / normalizer is the loss (9)."""
    grad_logprobs: Tensor
    """d(sum loss)/d(logprobs) (15)."""
    log_ratio: Tensor
    """logprobs - old_logprobs, clamped (6)."""
    ref_kl: Tensor | None
    """k3 (8), nats; None without ref_logprobs."""
    clipped_low: Tensor
    clipped_high: Tensor
    clipped_dual: Tensor


def policy_tokens(logprobs: Tensor, entropy: Tensor, inputs: PolicyInputs, config: ObjectiveConfig) -> PolicyTokens:
    """Evaluate equations (6)-(9) and (15) for each token."""
    advantages = inputs.advantages
    log_ratio = torch.zeros_like(logprobs) if inputs.old_logprobs is None else logprobs - inputs.old_logprobs
    in_range = log_ratio.abs() <= MAX_LOG_RATIO
    log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    below, above = ratio < 1.0 - config.clip_low, ratio > 1.0 + config.clip_high
    dual = torch.zeros_like(below)
    clipped_ratio = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    if config.kind == "cispo":
        slope = clipped_ratio * advantages
        surrogate = slope * logprobs
    else:
        above, below = above & (advantages > 0), below & (advantages < 0)
        surrogate = torch.minimum(ratio * advantages, clipped_ratio * advantages)
        if config.dual_clip is not None:
            dual = (advantages < 0) & (ratio > config.dual_clip)
            surrogate = torch.where(dual, config.dual_clip * advantages, surrogate)
        slope = torch.where(above | below | dual | ~in_range, 0.0, ratio * advantages)
    loss, grad, ref_kl = -surrogate, -slope, None
    if inputs.ref_logprobs is not None:
        distance = inputs.ref_logprobs - logprobs
        clamped = distance.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        ref_kl = clamped.exp() - clamped - 1.0
        loss = loss + config.kl_coef * ref_kl
        grad = grad + config.kl_coef * torch.where(distance == clamped, 1.0 - clamped.exp(), 0.0)
    total = inputs.weights * loss - inputs.entropy_weights * entropy
    return PolicyTokens(total, inputs.weights * grad, log_ratio, ref_kl, below, above, dual)


def may_have_gradient(inputs: PolicyInputs, config: ObjectiveConfig) -> Tensor:
    """(N,) bool: False where the gradient is exactly zero whatever the log-prob turns out to be (zero advantage, no bonus, no KL)."""
    if inputs.ref_logprobs is not None and config.kl_coef != 0:
        return torch.ones_like(inputs.advantages, dtype=torch.bool)
    return (inputs.advantages * inputs.weights != 0) | (inputs.entropy_weights != 0)


def policy_metrics(tokens: PolicyTokens, entropy: Tensor, inputs: PolicyInputs, keep: Tensor) -> dict[str, Tensor]:
    """Means over the tokens at which `keep` holds as 0-dim tensors (no device sync); all 0 when there is none."""
    count = keep.sum()

    def mean(x: Tensor) -> Tensor:
        return x.float().masked_fill(~keep, 0.0).sum() / count.clamp(min=1)

    ratio = tokens.log_ratio.exp()
    metrics = {
        "num_tokens": count,
        "clip_frac_low": mean(tokens.clipped_low),
        "clip_frac_high": mean(tokens.clipped_high),
        "clip_frac_dual": mean(tokens.clipped_dual),
        "clip_frac": mean(tokens.clipped_low | tokens.clipped_high | tokens.clipped_dual),
        "ratio_mean": mean(ratio),
        "ratio_max": torch.cat([ratio.masked_fill(~keep, 0.0), ratio.new_zeros(1)]).amax(),
        "approx_kl": mean(ratio - 1.0 - tokens.log_ratio),
        "entropy": mean(entropy),
        "num_grad_tokens": (keep & ((tokens.grad_logprobs != 0) | (inputs.entropy_weights != 0))).sum(),
    }
    if tokens.ref_kl is not None:
        metrics["ref_kl"] = mean(tokens.ref_kl)
    return metrics
