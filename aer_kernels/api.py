"""The public functions: docstring, validation, dispatch."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from aer_kernels import reference
from aer_kernels.objectives.aggregation import Aggregation, aggregate
from aer_kernels.objectives.policy import Objective, ObjectiveConfig, PolicyInputs, policy_metrics, policy_tokens
from aer_kernels.operators import HeadArguments, LogitsArguments, PolicyArguments, logits_statistics, logprobs, policy_loss
from aer_kernels.prepare import check_common, check_row_tol, find_tokens, objective_config, prepare_head
from aer_kernels.validate import check_impl, check_logits

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
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    lora_scale: float = 1.0,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    loss_mask: Tensor | None = None,
    ignore_index: int = -100,
    main_grad: Tensor | None = None,
    vocab_group: dist.ProcessGroup | None = None,
    vocab_start: int | None = None,
    select_rows: bool | None = None,
    batch_invariant: bool = False,
    memory_budget: int | None = None,
    impl: Implementation = "auto",
    debug_checks: bool | None = None,
) -> LogprobsOutput:
    """Log-prob of each target and entropy of each token's distribution, both differentiable, without the (N, V) logits.

        z = cap(hidden @ weight.T + lora_scale * (hidden @ lora_a.T) @ lora_b.T + bias) / temperature
        logprobs[n] = z[n, y_n] - logsumexp_v z[n, v]
        entropy[n]  = -sum_v p[n, v] log p[n, v],   p = softmax(z)

    Args:
        hidden: (..., D) fp32, bf16 or fp16 (fp64 with impl "torch" or "reference"). Final hidden states.
        weight: (V, D), dtype of hidden. The lm_head; any V. A DTensor (FSDP2) is gathered; its gradient is the sum over the mesh.
        targets: (...) int64 or int32, in [0, V) or ignore_index.
        bias: (V,) float, may hold -inf (padded vocabulary).
        lora_a, lora_b, lora_scale: (r, D) and (V, r), dtype of hidden: a low-rank update of the head.
        temperature: > 0, dimensionless, divides the logits; a float or a per-token tensor (not differentiable).
        softcap: > 0 or None: z = softcap * tanh(z / softcap) before the temperature; -inf stays -inf.
        loss_mask: (...) bool or 0/1; tokens at 0 are left out. None: all tokens.
        ignore_index: target that leaves a token out.
        main_grad: (V, D) fp32: grad_weight is added to it, and weight.grad stays as it was.
        vocab_group: ranks over which the vocabulary is split: weight, bias and lora_b are this rank's consecutive rows, in rank order;
            hidden and targets (ids of the whole vocabulary) are the same on every rank, and so are the results and grad_hidden.
        vocab_start: first vocabulary row of this rank. None: rank * V, for shards of one size, or where a DTensor has it.
        select_rows: leave tokens that do not count out of every product. Costs one device read a call on a GPU. False: all N rows are
            computed, and the host never waits. None: True, unless a CUDA graph is being captured.
        batch_invariant: every product has one shape whatever N is, so that a token's results and grad_hidden have the same bits in every
            batch, and the same log-probs in `fused_policy_loss`. Slower: blocks of 512 rows (64 on a CPU).
        memory_budget: bound in bytes on the workspace beyond inputs and outputs; None lets `aer_kernels.plan` choose. A budget with room to
            spare keeps logits of the first tokens, which then are not recomputed.
        impl: "triton" (GPU, or the interpreter), "torch" (any device), "reference" (full logits, autograd) or "auto": Triton on a GPU,
            else torch.
        debug_checks: check the values of targets and temperature (a device read on a GPU). None: only on a CPU. Unchecked, a target
            outside the vocabulary gives NaN.
    Returns:
        LogprobsOutput(logprobs, entropy, logsumexp), each (...) fp32 (fp64 for fp64 inputs), nats.
    Gradients:
        hidden, weight, bias, lora_a and lora_b, each only when needed, from any per-token upstream gradients of logprobs and entropy;
        tokens whose upstream gradients are all 0 cost nothing. Not twice differentiable.
    Raises:
        ValueError - shape, device, range, or a budget that is too small; TypeError - dtype.
    Notes:
        fp32 logits, statistics and accumulation of gradients; deterministic (no atomics). 2 N*V*D FLOPs forward, 6 backward (the logits are
        recomputed); saves hidden, weight and 16 bytes a token. `aer_kernels.plan.plan_logprobs` predicts the workspace. One opaque operator
        for torch.compile.
    Source: the derivation is in `aer_kernels.reference`, equations (1)-(16).
    """
    head, _ = prepare_head(
        hidden,
        weight,
        targets,
        bias=bias,
        lora_a=lora_a,
        lora_b=lora_b,
        lora_scale=lora_scale,
        temperature=temperature,
        softcap=softcap,
        loss_mask=loss_mask,
        ignore_index=ignore_index,
        main_grad=main_grad,
        vocab_group=vocab_group,
        vocab_start=vocab_start,
        select_rows=select_rows,
        batch_invariant=batch_invariant,
        memory_budget=memory_budget,
        impl=impl,
        debug_checks=debug_checks,
    )
    outputs = _reference_statistics(head) if impl == "reference" else logprobs(*head, main_grad)
    found, entropy, logsumexp = (x.reshape(targets.shape) for x in outputs[:3])
    return LogprobsOutput(found, entropy, logsumexp.detach())


def fused_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    advantages: Tensor,
    bias: Tensor | None = None,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    lora_scale: float = 1.0,
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
    row_tol: float | None = None,
    main_grad: Tensor | None = None,
    vocab_group: dist.ProcessGroup | None = None,
    vocab_start: int | None = None,
    select_rows: bool | None = None,
    batch_invariant: bool = False,
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
        hidden, weight, targets, bias, lora_a, lora_b, lora_scale, temperature, softcap, loss_mask, ignore_index, main_grad, vocab_group,
            vocab_start, select_rows, batch_invariant, memory_budget, impl, debug_checks: as in `fused_logprobs`.
        advantages: float, broadcastable to targets (for example (B, 1)).
        old_logprobs: like targets, nats, of the policy that the ratio refers to; None means strictly on-policy (ratio 1, with gradient).
        ref_logprobs: like targets, nats, for the KL term; needed when kl_coef > 0.
        importance_weights: like targets, >= 0, detached factor of the surrogate (rollout mismatch). None: 1.
        entropy_coef: the coefficient of each token, > 0 to raise entropy, < 0 to lower it: a float or a tensor broadcastable to targets.
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
        row_tol: >= 0: leave tokens out of the gradient products for which |ds/dlogprob| (1 - p_y) + |entropy_coef| H <= row_tol: half the
            bound on the L1 norm of their d(loss)/d(logits), before the division by normalizer. 0 leaves out exactly those without a
            gradient, such as clipped ratios. Each chunk then costs a device read. None: 0 on a CPU, where reading is free, else off.
    Returns:
        PolicyLossOutput(loss, logprobs, entropy, metrics). metrics: num_tokens, num_grad_tokens (tokens with a gradient), clip_frac and its
        parts clip_frac_low, clip_frac_high, clip_frac_dual, ratio_mean, ratio_max, approx_kl (to old_logprobs, nats), entropy (nats),
        dropped_l1 (bound on the L1 norm of the d(loss)/d(logits) that row_tol left out), and ref_kl (nats) with ref_logprobs.
    Gradients:
        loss w.r.t. hidden, weight, bias, lora_a and lora_b, each formed only when needed.
    Raises:
        ValueError - shape, device, range, or a budget that is too small; TypeError - dtype.
    Notes:
        fp32 logits, statistics and accumulation of grad_weight; deterministic. 6 N*V*D FLOPs, 2 for a row whose gradient is exactly zero
        (zero advantage and coefficient). The log-ratio is clamped to +-20. Holds the gradients of hidden and weight from the forward to the
        backward pass, rounded once to their dtype. `aer_kernels.plan.plan_policy_loss` predicts the workspace.
    Source: the entropy term is this project's form of arXiv:2510.10959; PPO arXiv:1707.06347, dual clip arXiv:1912.09729,
        DAPO arXiv:2503.14476, Dr.GRPO arXiv:2503.20783, CISPO arXiv:2506.13585.
        The derivation is in `aer_kernels.reference`, equations (1)-(16).
    """
    config = objective_config(objective, clip_low, clip_high, dual_clip, kl_coef, ref_logprobs)
    check_row_tol(row_tol, batch_invariant)
    head, tokens = prepare_head(
        hidden,
        weight,
        targets,
        bias=bias,
        lora_a=lora_a,
        lora_b=lora_b,
        lora_scale=lora_scale,
        temperature=temperature,
        softcap=softcap,
        loss_mask=loss_mask,
        ignore_index=ignore_index,
        main_grad=main_grad,
        vocab_group=vocab_group,
        vocab_start=vocab_start,
        select_rows=select_rows,
        batch_invariant=batch_invariant,
        memory_budget=memory_budget,
        impl=impl,
        debug_checks=debug_checks,
    )
    dtype = torch.promote_types(hidden.dtype, torch.float32)

    def clean(name: str, value: Tensor | None) -> Tensor | None:
        return None if value is None else tokens.clean(name, value, targets, dtype)

    weighting = aggregate(aggregation, targets, tokens.keep, sequence_ids, normalizer, entropy_normalizer, dtype)
    advantage = tokens.clean("advantages", advantages, targets, dtype)
    if importance_weights is not None:
        advantage = advantage * tokens.clean("importance_weights", importance_weights, targets, dtype)
    coef = entropy_coef if isinstance(entropy_coef, Tensor) else torch.full((), float(entropy_coef), dtype=dtype, device=hidden.device)
    inputs = PolicyInputs(
        advantage,
        weighting.weights,
        tokens.clean("entropy_coef", coef, targets, dtype) * weighting.entropy_ratio,
        clean("old_logprobs", old_logprobs),
        clean("ref_logprobs", ref_logprobs),
    )
    if impl == "reference":
        loss, found, entropy, dropped = _reference_policy_loss(head, inputs, config, weighting.scale)
    else:
        constants = (config.kind, config.clip_low, config.clip_high, config.dual_clip, config.kl_coef)
        policy = PolicyArguments(*inputs, weighting.scale, *constants, row_tol)
        loss, found, entropy, dropped = policy_loss(*head, *policy, main_grad)[:4]
    found, entropy = found.detach(), entropy.detach()
    metrics = policy_metrics(policy_tokens(found, entropy, inputs, config), entropy, inputs, tokens.keep)
    metrics["dropped_l1"] = dropped.detach()
    return PolicyLossOutput(loss, found.reshape(targets.shape), entropy.reshape(targets.shape), metrics)


def logprobs_from_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    loss_mask: Tensor | None = None,
    ignore_index: int = -100,
    inplace_backward: bool = False,
    impl: Implementation = "auto",
    debug_checks: bool | None = None,
) -> LogprobsOutput:
    """Log-prob of each target and entropy of each row, both differentiable, for trainers that already hold the logits.

    Args:
        logits: (..., V) fp32, bf16 or fp16 (fp64 with impl "torch" or "reference").
        targets, temperature, softcap, loss_mask, ignore_index, impl, debug_checks: as in `fused_logprobs`.
        inplace_backward: write the gradient over the logits instead of into (N, V) memory of its own. The logits are lost: whoever else
            reads them after the backward pass reads their gradient, and a second backward pass is an error.
    Returns:
        LogprobsOutput(logprobs, entropy, logsumexp), each (...) fp32, nats.
    Gradients: logits, in their dtype; exactly 0 in ignored rows.
    Raises: ValueError - shape, device, range; TypeError - dtype.
    Notes:
        One read of the rows that count forward, one read and one write backward; fp32 statistics whatever the dtype; no device read. The
        logits are not copied in either direction, unless their last dimension is strided.
    """
    check_common(impl, temperature, softcap, None)
    check_logits(logits, targets, impl)
    check_impl(impl, logits.device)
    tokens = find_tokens(targets, loss_mask, ignore_index, temperature, 0, logits.shape[-1], debug_checks, logits.dtype)
    flat = logits.reshape(-1, logits.shape[-1])
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    if impl == "reference":
        outputs = _reference_rows(flat, None, tokens.targets, tokens.keep, tokens.token_temperature, tokens.temperature, softcap)
    else:
        rows = LogitsArguments(flat, tokens.targets, tokens.keep, tokens.token_temperature, tokens.temperature, softcap, impl)
        outputs = logits_statistics(*rows, inplace_backward)
    found, entropy, logsumexp = (x.reshape(targets.shape) for x in outputs[:3])
    return LogprobsOutput(found, entropy, logsumexp.detach())


def _reference_statistics(head: HeadArguments) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(head.hidden.dtype, torch.float32)
    with torch.autocast(head.hidden.device.type, enabled=False):
        raw = head.hidden.to(dtype) @ head.weight.to(dtype).T
        if head.lora_hidden is not None and head.lora_weight is not None:
            raw = raw + head.lora_hidden.to(dtype) @ head.lora_weight.to(dtype).T
        return _reference_rows(raw, head.bias, head.targets, head.keep, head.token_temperature, head.temperature, head.softcap)


def _reference_rows(
    raw: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    keep: Tensor,
    token_temperature: Tensor | None,
    temperature: float,
    softcap: float | None,
) -> tuple[Tensor, ...]:
    """Equations (2)-(5) for the rows that count, 0 elsewhere."""
    rows = keep.nonzero().squeeze(1)
    divisor = temperature if token_temperature is None else token_temperature[rows]
    z = reference.temper(raw[rows].to(torch.promote_types(raw.dtype, torch.float32)), bias, divisor, softcap)
    return tuple(x.new_zeros(keep.numel()).index_copy(0, rows, x) for x in reference.token_statistics(z, targets[rows]))


def _reference_policy_loss(
    head: HeadArguments, inputs: PolicyInputs, config: ObjectiveConfig, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found, entropy, _ = _reference_statistics(head)
    terms = -reference.policy_surrogate(
        found, inputs.old_logprobs, inputs.advantages, config.kind, config.clip_low, config.clip_high, config.dual_clip
    )
    if inputs.ref_logprobs is not None and config.kl_coef != 0:
        terms = terms + config.kl_coef * reference.reference_kl(found, inputs.ref_logprobs)
    loss = torch.where(head.keep, inputs.weights * terms - inputs.entropy_weights * entropy, 0.0).sum() * scale
    return loss, found, entropy, torch.zeros_like(loss)
