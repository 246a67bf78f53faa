"""The trainer and the rollout backend give slightly different log-probs to the same tokens: how far they are apart, and the correction.

With d_t = trainer log-prob - rollout log-prob of a sampled token (both tempered, before the first update), the exact correction of the
policy gradient weighs a token by the product of the ratios up to it. Two usual approximations, each with two ways to bound it:

    token_*      w_t = exp(d_t)            a little biased, low variance
    sequence_*   w_t = exp(sum_s d_s)      right for the whole response, with a variance that grows with its length
    *_truncate   min(w, cap)
    *_mask       w where w <= cap, else 0

A weight multiplies its token's surrogate and nothing else. Masked tokens stay in every denominator: leaving them out would weigh all others
up, and the denominators of an update would depend on its log-probs. The entropy bonus is not weighted: it is about the states that were
visited, whichever token was drawn there.

Source: truncation arXiv:1802.01561; between engines of one policy https://fengyao.notion.site/off-policy-rl; KL estimate k3
http://joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aer_kernels.reference import MAX_LOG_RATIO
from aer_train.config.tree import Mismatch, TrainConfig

ONE_PASS = ("off", "token_truncate")
"""Kinds for which an on-policy update needs no pass for the log-probs of the policy that sampled: its own pass does (see `loss`)."""

SUMS = ("mismatch", "mismatch_k3", "mismatch_weights", "mismatch_squares", "mismatch_over_cap")
MAXIMA = ("mismatch_max", "mismatch_sequence_max")


def mismatch_kind(config: TrainConfig) -> Mismatch:
    """Return objective.mismatch with auto resolved.

    hf needs no correction: its log-probs are the trainer's own up to rounding. For vLLM truncated token weights: they bound the variance at
    any response length, and leave tokens on which both agree alone. Where the objective is one number a response (GSPO), its weight is too.
    """
    objective = config.objective
    if objective.mismatch != "auto":
        return objective.mismatch
    if config.rollout.backend == "hf":
        return "off"
    return "sequence_truncate" if objective.kind == "gspo" else "token_truncate"


def importance_weights(trainer: Tensor, rollout: Tensor, loss_mask: Tensor, kind: str, cap: float) -> Tensor:
    """Return the weight of each token, (B, T) float32, 0 outside loss_mask.

    Args:
        trainer, rollout: (B, T) log-probs, nats, a response a row.
        loss_mask: (B, T) bool.
        kind: token_truncate, token_mask, sequence_truncate or sequence_mask.
        cap: > 0.
    """
    raw = _raw_weights(_log_ratio(trainer, rollout, loss_mask), kind)
    bounded = torch.where(raw <= cap, raw, 0.0) if kind.endswith("_mask") else raw.clamp(max=cap)
    return torch.where(loss_mask, bounded, 0.0)


def mismatch_terms(trainer: Tensor, rollout: Tensor, loss_mask: Tensor, kind: str, cap: float) -> dict[str, Tensor]:
    """Return what these responses add to the step, 0-dim float64, for `mismatch_metrics`: those in SUMS to sum, those in MAXIMA to take the
    largest of. Arguments as for `importance_weights`; kind may be off."""
    log_ratio = _log_ratio(trainer, rollout, loss_mask).double()
    raw = torch.where(loss_mask, _raw_weights(log_ratio, kind), 0.0)
    return {
        "mismatch": log_ratio.abs().sum(),
        "mismatch_k3": (log_ratio.exp() - 1.0 - log_ratio).sum(),
        "mismatch_weights": raw.sum(),
        "mismatch_squares": (raw**2).sum(),
        "mismatch_over_cap": (raw > cap).double().sum() * (kind != "off"),
        "mismatch_max": log_ratio.abs().max(),
        "mismatch_sequence_max": log_ratio.sum(1).abs().max(),
    }


def mismatch_metrics(found: dict[str, float], num_tokens: int) -> dict[str, float | None]:
    """Return the metrics of a step from the sums and maxima over all its responses, which hold num_tokens loss tokens; None when 0.

    Returns:
        Nats, under rollout/: mismatch_mean and _max of |d|, mismatch_kl (k3 estimate of the divergence of the rollout's distribution from
        the trainer's), mismatch_sequence_max (largest |sum d| of a response). Of the weights before the cap: mismatch_ess (effective share
        of the tokens, 1 is all), mismatch_over_cap (share of tokens truncated or masked).
    """

    def share(total: float) -> float | None:
        return total / num_tokens if num_tokens else None

    return {
        "rollout/mismatch_mean": share(found["mismatch"]),
        "rollout/mismatch_max": found["mismatch_max"],
        "rollout/mismatch_sequence_max": found["mismatch_sequence_max"],
        "rollout/mismatch_kl": share(found["mismatch_k3"]),
        "rollout/mismatch_ess": share(found["mismatch_weights"] ** 2 / found["mismatch_squares"]) if num_tokens else None,
        "rollout/mismatch_over_cap": share(found["mismatch_over_cap"]),
    }


def _log_ratio(trainer: Tensor, rollout: Tensor, loss_mask: Tensor) -> Tensor:
    return torch.where(loss_mask, trainer - rollout, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _raw_weights(log_ratio: Tensor, kind: str) -> Tensor:
    """Before the cap: of the response for sequence_*, else of each token."""
    if kind.startswith("sequence"):
        return log_ratio.sum(1, keepdim=True).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().expand_as(log_ratio)
    return log_ratio.exp()
