"""The loss of one micro-batch as its share of the whole update, so that cutting an update into micro-batches cannot change the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aer_kernels import LogprobsOutput, PolicyLossOutput, fused_logprobs, fused_policy_loss
from aer_kernels.objectives.sequence import gspo_loss
from aer_train.batching import MicroBatch
from aer_train.config import Mismatch, ObjectiveConfig
from aer_train.mismatch import importance_weights
from aer_train.model import Policy, forward_pass
from aer_train.types import Sample


@dataclass(frozen=True)
class Denominators:
    """What the sums over an update are divided by."""

    policy: float
    """token_mean: loss tokens. sequence_mean and GSPO: responses. constant: responses * max_new_tokens."""
    entropy: float
    """Loss tokens, whatever the aggregation: an entropy coefficient always means the same."""


@dataclass(frozen=True)
class MicroLoss:
    """The share of the loss, and what was measured on the way (all detached but the loss)."""

    loss: Tensor
    """0-dim, differentiable; the shares of an update add up to its loss."""
    logprobs: Tensor
    """(B, T) float32, nats, 0 outside the responses."""
    entropy: Tensor
    """(B, T) float32, nats, 0 outside the responses."""
    metrics: dict[str, Tensor]
    """clip_frac, ratio_mean, ratio_max, approx_kl: 0-dim, over the loss tokens; GSPO, without approx_kl, over responses."""


def denominators(samples: Sequence[Sample], config: ObjectiveConfig, max_new_tokens: int) -> Denominators:
    """Return the denominators of an update on these samples."""
    tokens = float(sum(len(sample.tokens) for sample in samples))
    responses = float(len(samples))
    if config.kind == "gspo":
        return Denominators(responses, tokens)
    policy = {"token_mean": tokens, "sequence_mean": responses, "constant": responses * max_new_tokens}[config.aggregation]
    return Denominators(policy, tokens)


def policy_token_weights(batch: MicroBatch, config: ObjectiveConfig, denominator: Denominators) -> Tensor:
    """Return (B, 1): what a token of each response weighs in the policy term, as a multiple of what it weighs in the entropy term."""
    ratio = torch.full((len(batch.advantages), 1), denominator.entropy / max(1.0, denominator.policy), device=batch.advantages.device)
    by_response = config.kind == "gspo" or config.aggregation == "sequence_mean"
    return ratio / batch.loss_mask.sum(1, keepdim=True).clamp(min=1) if by_response else ratio


@forward_pass
def policy_loss(
    policy: Policy,
    batch: MicroBatch,
    config: ObjectiveConfig,
    denominator: Denominators,
    *,
    temperature: float,
    mismatch: Mismatch = "off",
    memory_budget: int | None = None,
) -> MicroLoss:
    """Return the micro-batch's share of

        loss = policy objective - sum_t entropy_coef(q(t)) * H_t / loss tokens of the update

    Args:
        temperature: > 0, of the distribution that was sampled and is trained.
        mismatch: which importance weights, as `mismatch_kind` found; those not in `mismatch.ONE_PASS` need the batch's old_logprobs.
        memory_budget: bytes of workspace for the fused loss; None lets its planner choose.
    """
    with policy.autocast():
        hidden = policy.hidden(batch.input_ids, batch.attention_mask)
        if mismatch == "token_truncate" and batch.old_logprobs is None:
            return _on_policy_truncated(policy, hidden, batch, config, denominator, temperature, memory_budget)
        weights = None
        if mismatch != "off":
            assert batch.old_logprobs is not None, "these importance weights need the log-probs of the policy that sampled"
            weights = importance_weights(batch.old_logprobs, batch.rollout_logprobs, batch.loss_mask, mismatch, config.mismatch_cap)
        if config.kind == "gspo":
            return _gspo(policy, hidden, batch, weights, config, denominator, temperature, memory_budget)
        output = _fused(policy, hidden, batch, batch.old_logprobs, weights, config, denominator, temperature, memory_budget)
    return MicroLoss(output.loss, output.logprobs, output.entropy, output.metrics)


@torch.no_grad()
@forward_pass
def measure(policy: Policy, batch: MicroBatch, *, temperature: float, memory_budget: int | None = None) -> tuple[Tensor, Tensor]:
    """Return log-probs and entropies (B, T) of the present policy, float32, nats, 0 outside the responses."""
    with policy.autocast():
        output = _logprobs(policy, policy.hidden(batch.input_ids, batch.attention_mask), batch, temperature, memory_budget)
    return output.logprobs, output.entropy


def _logprobs(policy: Policy, hidden: Tensor, batch: MicroBatch, temperature: float, memory_budget: int | None) -> LogprobsOutput:
    return fused_logprobs(
        hidden,
        policy.head.weight,
        batch.targets,
        bias=policy.head.bias,
        softcap=policy.softcap,
        loss_mask=batch.loss_mask,
        temperature=temperature,
        memory_budget=memory_budget,
    )


def _fused(
    policy: Policy,
    hidden: Tensor,
    batch: MicroBatch,
    old_logprobs: Tensor | None,
    weights: Tensor | None,
    config: ObjectiveConfig,
    denominator: Denominators,
    temperature: float,
    memory_budget: int | None,
) -> PolicyLossOutput:
    assert config.kind != "gspo"
    return fused_policy_loss(
        hidden,
        policy.head.weight,
        batch.targets,
        bias=policy.head.bias,
        softcap=policy.softcap,
        advantages=batch.advantages[:, None],
        old_logprobs=old_logprobs,
        importance_weights=weights,
        loss_mask=batch.loss_mask,
        entropy_coef=batch.entropy_coef[:, None],
        objective=config.kind,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
        aggregation=config.aggregation,
        normalizer=denominator.policy,
        entropy_normalizer=denominator.entropy,
        temperature=temperature,
        memory_budget=memory_budget,
    )


def _on_policy_truncated(
    policy: Policy,
    hidden: Tensor,
    batch: MicroBatch,
    config: ObjectiveConfig,
    denominator: Denominators,
    temperature: float,
    memory_budget: int | None,
) -> MicroLoss:
    """An update of ratio 1 with weights min(r, cap), where r is the ratio of this very pass to the rollout's log-probs.

    Its slope min(r, cap) A is cispo's for the ratio r, so that no other pass is needed. The value of a clipped ratio (ppo) has 1 where
    cispo's has the log-prob.
    """
    cap = config.mismatch_cap
    as_cispo = replace(config, kind="cispo", clip_low=1.0, clip_high=cap - 1.0, dual_clip=None)
    output = _fused(policy, hidden, batch, batch.rollout_logprobs, None, as_cispo, denominator, temperature, memory_budget)
    loss, zero = output.loss, torch.zeros_like(output.metrics["approx_kl"])
    if config.kind == "ppo":
        weights = importance_weights(output.logprobs, batch.rollout_logprobs, batch.loss_mask, "token_truncate", cap)
        terms = weights * batch.advantages[:, None] * (output.logprobs - 1.0)
        if config.aggregation == "sequence_mean":
            terms = terms / batch.loss_mask.sum(1, keepdim=True).clamp(min=1)
        loss = loss + terms.sum() / denominator.policy
    metrics = {"clip_frac": zero, "ratio_mean": zero + 1.0, "ratio_max": zero + 1.0, "approx_kl": zero}
    return MicroLoss(loss, output.logprobs, output.entropy, metrics)


def _gspo(
    policy: Policy,
    hidden: Tensor,
    batch: MicroBatch,
    weights: Tensor | None,
    config: ObjectiveConfig,
    denominator: Denominators,
    temperature: float,
    memory_budget: int | None,
) -> MicroLoss:
    output = _logprobs(policy, hidden, batch, temperature, memory_budget)
    loss, metrics = gspo_loss(
        output.logprobs,
        advantages=batch.advantages if weights is None else batch.advantages * weights.amax(1),
        loss_mask=batch.loss_mask,
        old_logprobs=batch.old_logprobs,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        normalizer=denominator.policy,
    )
    bonus = (batch.entropy_coef[:, None] * output.entropy).sum() / denominator.entropy
    return MicroLoss(loss - bonus, output.logprobs.detach(), output.entropy.detach(), metrics)
