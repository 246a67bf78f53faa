"""The public functions: docstring, validation, dispatch."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from aer_kernels import reference
from aer_kernels.autograd import FusedLogprobs, FusedPolicyLoss, LogprobsFromLogits, Tokens
from aer_kernels.chunked import HeadNeeds
from aer_kernels.objectives.aggregation import Aggregation, aggregate
from aer_kernels.objectives.policy import Objective, ObjectiveConfig, PolicyInputs, policy_metrics, policy_tokens
from aer_kernels.plan import plan_logprobs, plan_policy_loss
from aer_kernels.prepare import autocast, check_common, loss_tokens, objective_config
from aer_kernels.validate import check_head, check_logits, per_token

Implementation = Literal["auto", "triton", "torch", "reference"]


class LogprobsOutput(NamedTuple):
    """Per-token results in the shape of targets, fp32, nats; exactly 0 at ignored tokens."""

    logprobs: Tensor
    """Log-probability of the target. Differentiable."""
    entropy: Tensor
    """Entropy of the whole tempered distribution, in [0, log V]. Differentiable."""
    logsumexp: Tensor
    """Log-normaliser of the tempered logits. Not differentiable."""


class PolicyLossOutput(NamedTuple):
    """The loss and what was measured on the way."""

    loss: Tensor
    """0-dim, differentiable."""
    logprobs: Tensor
    """Shape of targets, fp32, nats, detached; exactly 0 at ignored tokens."""
    entropy: Tensor
    """Shape of targets, fp32, nats, detached; exactly 0 at ignored tokens."""
    metrics: dict[str, Tensor]
    """0-dim tensors, means over the loss tokens of this call: see `fused_policy_loss`."""


def fused_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    loss_mask: Tensor | None = None,
    ignore_index: int = -100,
    memory_budget: int | None = None,
    impl: Implementation = "auto",
    debug_checks: bool | None = None,
) -> LogprobsOutput:
    """Log-prob of each target and entropy of each token's distribution, both differentiable, without the (N, V) logits.

        z = cap(hidden @ weight.T + bias) / temperature
        logprobs[n] = z[n, y_n] - logsumexp_v z[n, v]
        entropy[n]  = -sum_v p[n, v] log p[n, v],   p = softmax(z)

    Args:
        hidden: (..., D) fp32, bf16 or fp16 (fp64 with impl "torch" or "reference"). Final hidden states.
        weight: (V, D), dtype of hidden. The lm_head; any V.
        targets: (...) int64 or int32, in [0, V) or ignore_index.
        bias: (V,) float, may hold -inf (padded vocabulary).
        temperature: > 0, dimensionless, divides the logits; a float or a per-token tensor (not differentiable).
        softcap: > 0 or None: z = softcap * tanh(z / softcap) before the temperature; -inf stays -inf.
        loss_mask: (...) bool or 0/1; tokens at 0 are left out of every product. None: all tokens.
        ignore_index: target that leaves a token out.
        memory_budget: bound in bytes on the workspace beyond inputs and outputs; None lets `aer_kernels.plan` choose.
        impl: "triton" (GPU, or the interpreter), "torch" (any device), "reference" (full logits, autograd) or "auto": Triton on a GPU,
            else torch.
        debug_checks: check the values of targets and temperature (a device sync on a GPU). None: only on a CPU. Unchecked, a target
            outside the vocabulary gives NaN.
    Returns:
        LogprobsOutput(logprobs, entropy, logsumexp), each (...) fp32 (fp64 for fp64 inputs), nats.
    Gradients:
        hidden, weight and bias, each formed only when needed, from any per-token upstream gradients of logprobs and entropy; tokens whose
        upstream gradients are all exactly 0 cost nothing. Not twice differentiable.
    Raises:
        ValueError - shape, device, range, or a budget that is too small; TypeError - dtype.
    Notes:
        fp32 logits, statistics and accumulation of gradients; deterministic (no atomics). 2 N*V*D FLOPs forward, 6 backward (the logits are
        recomputed); saves hidden, weight and 16 bytes a token. `aer_kernels.plan.plan_logprobs` predicts the workspace.
    Source: the derivation is in `aer_kernels.reference`, equations (1)-(16).
    """
    check_common(impl, temperature, softcap, memory_budget)
    hidden, weight, bias = autocast(hidden, weight, bias)
    check_head(hidden, weight, targets, bias, impl)
    tokens = loss_tokens(targets, loss_mask, ignore_index, temperature, softcap, weight.shape[0], impl, debug_checks, hidden.dtype)
    flat = hidden.reshape(-1, hidden.shape[-1])
    if impl == "reference":
        return _reference_logprobs(flat, weight, bias, tokens, targets.shape)
    needs = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden, weight, bias)]
    plan = plan_logprobs(
        tokens.targets.numel(),
        *weight.shape,
        dtype=hidden.dtype,
        device=hidden.device,
        in_place=tokens.backend.WRITES_IN_PLACE,
        needs_grad_hidden=needs[0],
        needs_grad_weight=needs[1],
        memory_budget=memory_budget,
    )
    outputs = FusedLogprobs.apply(flat, weight, bias, tokens, plan)
    return LogprobsOutput(*(x.reshape(targets.shape) for x in outputs))


def fused_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    advantages: Tensor,
    bias: Tensor | None = None,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    importance_weights: Tensor | None = None,
    loss_mask: Tensor | None = None,
    ignore_index: int = -100,
    entropy_coef: float | Tensor = 0.0,
    kl_coef: float = 0.0,
    objective: Objective = "ppo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    aggregation: Aggregation = "token_mean",
    sequence_ids: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    entropy_normalizer: float | Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    memory_budget: int | None = None,
    impl: Implementation = "auto",
    debug_checks: bool | None = None,
) -> PolicyLossOutput:
    """Difficulty-weighted, entropy-regularized policy loss straight from hidden states; its gradients are formed in the forward pass.

        loss = sum_n n_n (-w_n s_n + kl_coef k_n) - sum_n m_n entropy_coef_n H_n
        ppo:   s = min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(logprobs - old_logprobs)
        cispo: s = sg[clip(r, 1 - clip_low, 1 + clip_high)] A logprobs
        k = exp(d) - d - 1, d = ref_logprobs - logprobs

    GRPO is ppo with aggregation "sequence_mean"; DAPO is ppo with "token_mean" and clip_high > clip_low; Dr.GRPO is "constant" with
    normalizer = responses * longest response. A sequence-level ratio (GSPO) is `aer_kernels.objectives.sequence` on `fused_logprobs`.

    Args:
        hidden, weight, targets, bias, temperature, softcap, loss_mask, ignore_index, memory_budget, impl, debug_checks: as in
            `fused_logprobs`.
        advantages: float, broadcastable to targets (for example (B, 1)).
        old_logprobs: like targets, nats, of the policy that the ratio refers to; None means strictly on-policy (ratio 1, with gradient).
        ref_logprobs: like targets, nats, for the KL term; needed when kl_coef > 0.
        importance_weights: like targets, >= 0, detached factor of the surrogate (rollout mismatch). None: 1.
        entropy_coef: the coefficient alpha * w(q) of each token, >= 0 to reward entropy: a float or a tensor broadcastable to targets.
        kl_coef: >= 0.
        objective: "ppo" or "cispo".   clip_low, clip_high: >= 0; clip_low >= 1 means no lower bound.   dual_clip: > 1 or None.
        aggregation: weights n_n of the policy and KL terms. "token_mean": 1 / normalizer. "sequence_mean": 1 / (normalizer * loss tokens
            of n's sequence). "constant": 1 / normalizer, which must be given.
        sequence_ids: like targets, int in [0, N): which sequence a token belongs to, for "sequence_mean". None: the last dimension of a
            targets with two or more is one sequence.
        normalizer: > 0, float or 0-dim tensor: the denominator over all micro-batches and ranks. None: this call's loss tokens
            (token_mean) or sequences (sequence_mean).
        entropy_normalizer: > 0: denominator of the entropy term, m_n = 1 / entropy_normalizer. None: normalizer for token_mean, else this
            call's loss tokens, so that a coefficient means the same under every aggregation.
    Returns:
        PolicyLossOutput(loss, logprobs, entropy, metrics). metrics: num_tokens, num_grad_tokens (rows in the backward products),
        clip_frac and its parts clip_frac_low, clip_frac_high, clip_frac_dual, ratio_mean, ratio_max, approx_kl (to old_logprobs, nats),
        entropy (nats), and ref_kl (nats) with ref_logprobs.
    Gradients:
        loss w.r.t. hidden, weight and bias, each formed only when needed.
    Raises:
        ValueError - shape, device, range, or a budget that is too small; TypeError - dtype.
    Notes:
        fp32 logits, statistics and accumulation of grad_weight; deterministic. 6 N*V*D FLOPs, 2 for a row whose gradient is exactly zero
        (zero advantage and coefficient), and no gradient products for clipped ratios. The log-ratio is clamped to +-20. Holds the gradients
        of hidden and weight from the forward to the backward pass. `aer_kernels.plan.plan_policy_loss` predicts the workspace.
    Source: the entropy term is this project's form of arXiv:2510.10959; PPO arXiv:1707.06347, dual clip arXiv:1912.09729,
        DAPO arXiv:2503.14476, Dr.GRPO arXiv:2503.20783, CISPO arXiv:2506.13585.
        The derivation is in `aer_kernels.reference`, equations (1)-(16).
    """
    check_common(impl, temperature, softcap, memory_budget)
    config = objective_config(objective, clip_low, clip_high, dual_clip, kl_coef, ref_logprobs)
    hidden, weight, bias = autocast(hidden, weight, bias)
    check_head(hidden, weight, targets, bias, impl)
    tokens = loss_tokens(targets, loss_mask, ignore_index, temperature, softcap, weight.shape[0], impl, debug_checks, hidden.dtype)
    dtype = torch.promote_types(hidden.dtype, torch.float32)

    def compact(name: str, value: Tensor) -> Tensor:
        return tokens.compact(per_token(name, value, targets).to(dtype))

    weighting = aggregate(aggregation, targets, tokens.rows, sequence_ids, normalizer, entropy_normalizer, dtype)
    advantage = compact("advantages", advantages)
    if importance_weights is not None:
        advantage = advantage * compact("importance_weights", importance_weights)
    coef = entropy_coef if isinstance(entropy_coef, Tensor) else torch.full((), float(entropy_coef), dtype=dtype, device=hidden.device)
    inputs = PolicyInputs(
        advantage,
        weighting.weights,
        compact("entropy_coef", coef) * weighting.entropy_ratio,
        None if old_logprobs is None else compact("old_logprobs", old_logprobs),
        None if ref_logprobs is None else compact("ref_logprobs", ref_logprobs),
    )
    flat = hidden.reshape(-1, hidden.shape[-1])
    if impl == "reference":
        loss, logprobs, entropy = _reference_policy_loss(flat, weight, bias, tokens, inputs, config, weighting.scale)
    else:
        needs = HeadNeeds(*(torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden, weight, bias)))
        plan = plan_policy_loss(
            tokens.targets.numel(),
            *weight.shape,
            dtype=hidden.dtype,
            device=hidden.device,
            in_place=tokens.backend.WRITES_IN_PLACE,
            needs_grad_hidden=needs.hidden,
            needs_grad_weight=needs.weight,
            memory_budget=memory_budget,
        )
        loss, logprobs, entropy = FusedPolicyLoss.apply(flat, weight, bias, tokens, plan, inputs, config, weighting.scale, needs)
    found = tokens.compact(logprobs), tokens.compact(entropy)
    metrics = policy_metrics(policy_tokens(*found, inputs, config), found[1], inputs)
    return PolicyLossOutput(loss, logprobs.reshape(targets.shape), entropy.reshape(targets.shape), metrics)


def logprobs_from_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    loss_mask: Tensor | None = None,
    ignore_index: int = -100,
    impl: Implementation = "auto",
    debug_checks: bool | None = None,
) -> LogprobsOutput:
    """Log-prob of each target and entropy of each row, both differentiable, for trainers that already hold the logits.

    Args:
        logits: (..., V) fp32, bf16 or fp16 (fp64 with impl "torch" or "reference").
        targets, temperature, softcap, loss_mask, ignore_index, impl, debug_checks: as in `fused_logprobs`.
    Returns:
        LogprobsOutput(logprobs, entropy, logsumexp), each (...) fp32, nats.
    Gradients: logits, in their dtype; exactly 0 in ignored rows.
    Raises: ValueError - shape, device, range; TypeError - dtype.
    Notes: fp32 statistics whatever the dtype; the logits are not copied in either direction, unless their last dimension is strided.
    """
    check_common(impl, temperature, softcap, None)
    check_logits(logits, targets, impl)
    tokens = loss_tokens(targets, loss_mask, ignore_index, temperature, softcap, logits.shape[-1], impl, debug_checks, logits.dtype)
    flat = logits.reshape(-1, logits.shape[-1])
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    if impl == "reference":
        rows = flat if tokens.rows is None else flat.index_select(0, tokens.rows)
        identity = torch.promote_types(flat.dtype, torch.float32)
        z = reference.temper(rows.to(identity), None, tokens.temperature, softcap)
        outputs = (tokens.spread(x, flat.shape[0]) for x in reference.token_statistics(z, tokens.targets))
    else:
        outputs = LogprobsFromLogits.apply(flat, tokens)
    return LogprobsOutput(*(x.reshape(targets.shape) for x in outputs))


def _reference_logprobs(hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tokens, shape: torch.Size) -> LogprobsOutput:
    found = _reference_statistics(hidden, weight, bias, tokens)
    logprobs, entropy, logsumexp = (tokens.spread(x, hidden.shape[0]).reshape(shape) for x in found)
    return LogprobsOutput(logprobs, entropy, logsumexp.detach())


def _reference_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tokens,
    inputs: PolicyInputs,
    config: ObjectiveConfig,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    logprobs, entropy, _ = _reference_statistics(hidden, weight, bias, tokens)
    terms = -reference.policy_surrogate(
        logprobs, inputs.old_logprobs, inputs.advantages, config.kind, config.clip_low, config.clip_high, config.dual_clip
    )
    if inputs.ref_logprobs is not None and config.kl_coef != 0:
        terms = terms + config.kl_coef * reference.reference_kl(logprobs, inputs.ref_logprobs)
    loss = (inputs.weights * terms - inputs.entropy_weights * entropy).sum() * scale
    return loss, tokens.spread(logprobs.detach(), hidden.shape[0]), tokens.spread(entropy.detach(), hidden.shape[0])


def _reference_statistics(hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    rows = hidden if tokens.rows is None else hidden.index_select(0, tokens.rows)
    with torch.autocast(hidden.device.type, enabled=False):
        raw = rows.to(dtype) @ weight.to(dtype).T
        return reference.token_statistics(reference.temper(raw, bias, tokens.temperature, tokens.softcap), tokens.targets)
