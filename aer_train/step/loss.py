"""The loss of one micro-batch as its share of the whole update, so that cutting an update into micro-batches cannot change the gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aer_kernels import KeptSet, LogprobsOutput, fused_logprobs, fused_moments, fused_policy_loss
from aer_kernels.objectives.policy import Divergence
from aer_kernels.objectives.sequence import gspo_loss
from aer_kernels.reference import divergence as token_divergence
from aer_train.model import Policy, forward_pass, fused_options
from aer_train.step.batching import MicroBatch
from aer_train.step.mismatch import importance_weights
from aer_train.step.objective import Floor, Objective, Statistic


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
    """clip_frac, ratio_mean, ratio_max, approx_kl: 0-dim, over the loss tokens; GSPO, without approx_kl, over responses. With a KL penalty
    ref_kl, over the loss tokens."""


def policy_token_weights(batch: MicroBatch, objective: Objective) -> Tensor:
    """Return (B, 1): what a token of each response weighs in the policy term, as a multiple of what it weighs in the entropy term."""
    ratio = objective.entropy_denominator / max(1.0, objective.denominator)
    weights = torch.full((len(batch.loss_mask), 1), ratio, device=batch.loss_mask.device)
    return weights / batch.loss_mask.sum(1, keepdim=True).clamp(min=1) if objective.by_response else weights


@forward_pass
def policy_loss(policy: Policy, batch: MicroBatch, objective: Objective) -> MicroLoss:
    """Return the micro-batch's share of

    loss = policy objective + kl_coef * divergence from the reference
           - sum_t entropy_scale entropy_coef_t H_t / loss tokens of the update
           + sum_i statistic_coef_i S_i / responses of the update
    """
    with policy.autocast():
        hidden = batch.hidden(policy)
        head = _Head(policy, hidden, batch, objective.temperature, objective.memory_budget)
        loss = (_gspo if objective.config.kind == "gspo" else _by_token)(head, objective)
    if objective.statistic is None or batch.statistic_coef is None:
        return loss
    return replace(loss, loss=loss.loss + _statistic_loss(objective.statistic, hidden, batch) / objective.responses)


@torch.no_grad()
@forward_pass
def measure(
    policy: Policy,
    batch: MicroBatch,
    *,
    temperature: float,
    memory_budget: int | None = None,
    floor: Floor | None = None,
    kept: KeptSet | None = None,
    moments: bool = False,
) -> dict[str, Tensor]:
    """Return what the present policy says of each token, (B, T) float32 each, nats, 0 outside the responses.

    Args:
        floor: what log-probs and entropies are over. None: all tokens.
        kept: a set whose entropies are measured too. None: none.
        moments: whether the means of S_v = p_v (log p_v + H) are measured too.
    Returns:
        logprobs, entropy and, where they are asked for, kept_entropy and mean_surprise.
    """
    with policy.autocast():
        head = _Head(policy, batch.hidden(policy), batch, temperature, memory_budget)
        output = head.logprobs(floor)
        found = {"logprobs": output.logprobs, "entropy": output.entropy}
        if kept is not None:
            found["kept_entropy"] = head.logprobs(Floor(kept, "entropy")).entropy
        if moments:
            found["mean_surprise"] = head.moments()
    return found


@torch.no_grad()
@forward_pass
def measure_statistic(policy: Policy, batch: MicroBatch, statistic: Statistic) -> Tensor:
    """Return the statistic of each sample of a micro-batch under the present policy, (B,) float32; (0,) of an empty one."""
    with policy.autocast():
        hidden = batch.hidden(policy)
    found = [statistic(states[span]) for states, span in zip(hidden, batch.spans, strict=False)]
    return torch.stack(found).float() if found else hidden.new_zeros(0, dtype=torch.float32)


def _statistic_loss(statistic: Statistic, hidden: Tensor, batch: MicroBatch) -> Tensor:
    """Sum of statistic_coef times statistic; a sample whose coefficient is 0 costs nothing."""
    assert batch.statistic_coef is not None
    total = torch.zeros((), device=hidden.device)
    for states, span, coef in zip(hidden, batch.spans, batch.statistic_coef.tolist(), strict=False):  # an empty micro-batch has no span
        if coef:
            total = total + coef * statistic(states[span])
    return total


@dataclass(frozen=True)
class _Head:
    """The policy's output layer on the hidden states (B, T, D) of a micro-batch."""

    policy: Policy
    hidden: Tensor
    batch: MicroBatch
    temperature: float
    memory_budget: int | None

    def options(self, floor: Floor | None = None) -> dict[str, Any]:
        """Arguments of every fused function. The floor is found anew in each pass: logits move, even those of unchanged probabilities."""
        plain = self._plain()
        if floor is None:
            return plain
        with torch.no_grad():
            floors = floor.kept.floors(self.hidden.detach(), self.policy.head.weight, **plain)
        return {**plain, "floor": floors, "floor_scope": floor.scope}

    def logprobs(self, floor: Floor | None) -> LogprobsOutput:
        return fused_logprobs(self.hidden, self.policy.head.weight, self.batch.targets, **self.options(floor))

    def moments(self) -> Tensor:
        return fused_moments(self.hidden, self.policy.head.weight, self.batch.targets, **self._plain()).squares_surprise

    def _plain(self) -> dict[str, Any]:
        head = fused_options(self.policy, self.temperature)
        return {**head, "loss_mask": self.batch.loss_mask, "memory_budget": self.memory_budget}


def _by_token(head: _Head, objective: Objective) -> MicroLoss:
    config, batch = objective.config, head.batch
    assert config.kind != "gspo"
    in_pass = objective.mismatch == "token_truncate"  # needs no log-probs but those of the pass itself
    divergence = _divergence(batch, objective)
    output = fused_policy_loss(
        head.hidden,
        head.policy.head.weight,
        batch.targets,
        advantages=batch.advantages,
        old_logprobs=batch.old_logprobs,
        rollout_logprobs=batch.rollout_logprobs if in_pass else None,
        rollout_cap=config.mismatch_cap,
        importance_weights=batch.weights if in_pass else _weights(batch, objective),
        entropy_coef=objective.entropy_scale * batch.entropy_coef,
        ref_logprobs=None if divergence is None else divergence.logprobs,
        kl_coef=0.0 if divergence is None else divergence.coef,
        kl="k3" if divergence is None else divergence.kind,
        objective=config.kind,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
        aggregation=config.aggregation,
        normalizer=objective.denominator,
        entropy_normalizer=objective.entropy_denominator,
        **head.options(objective.floor),
    )
    return MicroLoss(output.loss, output.logprobs, output.entropy, output.metrics)


def _gspo(head: _Head, objective: Objective) -> MicroLoss:
    config, batch = objective.config, head.batch
    weights, output = _weights(batch, objective), head.logprobs(objective.floor)
    loss, metrics = gspo_loss(
        output.logprobs,
        advantages=batch.advantages if weights is None else batch.advantages * weights,
        loss_mask=batch.loss_mask,
        old_logprobs=batch.old_logprobs,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        normalizer=objective.denominator,
    )
    bonus = (objective.entropy_scale * batch.entropy_coef * output.entropy).sum() / objective.entropy_denominator
    divergence = _divergence(batch, objective)
    if divergence is not None:
        distance = token_divergence(output.logprobs, divergence.logprobs, divergence.kind)
        tokens = batch.loss_mask.sum(1).clamp(min=1)
        loss = loss + ((divergence.coef * distance).sum(1) / tokens).sum() / objective.denominator
        metrics = {**metrics, "ref_kl": distance.detach().sum() / max(1, batch.loss_tokens)}
    return MicroLoss(loss - bonus, output.logprobs.detach(), output.entropy.detach(), metrics)


class _Divergence(NamedTuple):
    """A term that holds log-probs near others."""

    logprobs: Tensor
    """(B, T), nats: what they are held near."""
    coef: float | Tensor
    kind: Divergence


def _divergence(batch: MicroBatch, objective: Objective) -> _Divergence | None:
    """That from the reference, or the method's own from the policy that sampled; None where there is neither, or the latter is 0."""
    if batch.reference is not None:
        return _Divergence(batch.reference, objective.config.kl_coef, objective.config.kl)
    if batch.divergence_coef is None or batch.old_logprobs is None:
        return None
    return _Divergence(batch.old_logprobs, batch.divergence_coef, "abs_k1")


def _weights(batch: MicroBatch, objective: Objective) -> Tensor | None:
    """The method's weights times the importance weights for rollout mismatch, (B, T)."""
    if objective.mismatch == "off":
        return batch.weights
    assert batch.old_logprobs is not None, "these importance weights need the log-probs of the policy that sampled"
    cap = objective.config.mismatch_cap
    found = importance_weights(batch.old_logprobs, batch.rollout_logprobs, batch.loss_mask, objective.mismatch, cap)
    return found if batch.weights is None else found * batch.weights
