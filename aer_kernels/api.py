"""The public functions: docstring, validation, dispatch."""

from __future__ import annotations

from dataclasses import astuple
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from aer_kernels.inputs import check_common, check_row_tol, find_tokens, make_surrogate, policy_inputs, prepare_head
from aer_kernels.objectives.aggregation import Aggregation, aggregate
from aer_kernels.objectives.policy import METRICS, Divergence, Objective
from aer_kernels.operators import LogitsArguments, PolicyArguments, full_logits, logits_statistics, logprobs, policy_loss
from aer_kernels.validate import check_impl, check_logits

Implementation = Literal["auto", "triton", "torch", "reference"]
FloorScope = Literal["all", "entropy"]


class LogprobsOutput(NamedTuple):
    """Per-token results. Each has the shape of targets, in fp32 and nats, and is exactly 0 at ignored tokens."""

    logprobs: Tensor
    """Log-probability of the target. Differentiable."""
    entropy: Tensor
    """Entropy of the whole tempered distribution, in [0, log V]. Differentiable."""
    logsumexp: Tensor
    """Log-sum-exp of the tempered logits. Not differentiable."""


class PolicyLossOutput(NamedTuple):
    """The loss, and what the forward pass measured."""

    loss: Tensor
    """0-dim, differentiable."""
    logprobs: Tensor
    """Shape of targets, fp32, nats, detached; exactly 0 at ignored tokens."""
    entropy: Tensor
    """Shape of targets, fp32, nats, detached; exactly 0 at ignored tokens."""
    metrics: dict[str, Tensor]
    """0-dim tensors. Most are means over the loss tokens of this call; `fused_policy_loss` lists them."""


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
    floor: Tensor | None = None,
    floor_scope: FloorScope = "all",
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
    """Return the log-prob of each target and the entropy of each token's distribution, without holding the (N, V) logits.

        z = cap(hidden @ weight.T + lora_scale * (hidden @ lora_a.T) @ lora_b.T + bias) / temperature
        logprobs[n] = z[n, y_n] - logsumexp_v z[n, v]
        entropy[n]  = -sum_v p[n, v] log p[n, v],   p = softmax(z)

    Args:
        hidden: (..., D) fp32, bf16 or fp16; also fp64 with impl "torch" or "reference". The final hidden states.
        weight: (V, D), dtype of hidden. The lm_head, for any V. A DTensor (FSDP2) is gathered; its gradient is the sum over the mesh.
        targets: (...) int64 or int32, in [0, V) or ignore_index.
        bias: (V,) float. It may hold -inf for a padded vocabulary.
        lora_a: (r, D), dtype of hidden. With lora_b it is a low-rank update of the head.
        lora_b: (V, r), dtype of hidden.
        lora_scale: factor of the low-rank update.
        temperature: divides the logits, > 0. A float or a tensor with one value a token; dimensionless, not differentiable.
        softcap: z = softcap * tanh(z / softcap) before the temperature, > 0; -inf stays -inf. None is no softcap.
        floor: broadcastable to targets, in nats. Logits z below it are left out of every sum, as if they were -inf; the target never is.
            `aer_kernels.fused_floors` finds the floor of top-p, top-k or min-p. Not differentiable. None leaves out nothing.
        floor_scope: "all", or "entropy". With "entropy" only the entropy has a floor: it is that of the renormalised distribution of what
            is kept, the target included only if it is above the floor.
        loss_mask: (...) bool or 0/1. Tokens at 0 are left out. None keeps all tokens.
        ignore_index: the target that leaves its token out.
        main_grad: (V, D) fp32. The gradient of weight is added to it, and weight.grad stays as it was.
        vocab_group: ranks over which the vocabulary is split. weight, bias and lora_b are then this rank's rows, in rank order. hidden and
            targets (ids of the whole vocabulary) are the same on every rank, and so are the results and the gradient of hidden.
        vocab_start: first vocabulary row of this rank. None means rank * V for equal shards, or what a DTensor says.
        select_rows: whether tokens that do not count are left out of every product. That costs one device read a call on a GPU. False
            computes all N rows, and the host never waits. None means True, unless a CUDA graph is being captured.
        batch_invariant: give every product one shape, whatever N is. A token's results and its gradient of hidden then have the same bits
            in every batch, and `fused_policy_loss` gives the same log-probs. Slower: blocks have 512 rows, 64 on a CPU.
        memory_budget: bound in bytes on the workspace, which is what a call needs beyond inputs and outputs. None lets `aer_kernels.plan`
            choose. A large budget keeps the logits of the first tokens, which the backward pass then need not recompute.
        impl: "triton" (a GPU, or the interpreter), "torch" (any device), "reference" (full logits and autograd), or "auto", which is
            Triton on a GPU and torch elsewhere.
        debug_checks: whether the values of targets and temperature are checked, which reads the device. None checks on a CPU only.
            Without the check a target outside the vocabulary gives NaN.
    Returns:
        LogprobsOutput(logprobs, entropy, logsumexp), each (...) fp32 (fp64 for fp64 inputs), in nats.
    Raises:
        ValueError: a shape, device or range is wrong, or the budget is too small.
        TypeError: a dtype is wrong.

    Gradients: of hidden, weight, bias, lora_a and lora_b, each formed only when it is needed, from any upstream gradients of logprobs and
    entropy. A token whose upstream gradients are all 0 costs nothing. Not twice differentiable.

    Numerics: logits, statistics and sums of gradients are fp32. There are no atomics, so a call repeats bit for bit.

    Cost: 2 N*V*D FLOPs forward and 6 backward, which recomputes the logits. The backward pass needs hidden, weight and 16 bytes a token.
    `aer_kernels.plan.plan_logprobs` predicts the workspace. torch.compile sees one opaque operator.

    Source: `aer_kernels.reference` has the derivation, equations (1)-(16).
    """
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
        floor=floor,
        floor_scope=floor_scope,
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
    outputs = full_logits.head_statistics(head) if impl == "reference" else logprobs(*head, main_grad)
    if head.floor is not None:
        tokens.check_kept(outputs[1], outputs[0], debug_checks)
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
    rollout_logprobs: Tensor | None = None,
    importance_weights: Tensor | None = None,
    loss_mask: Tensor | None = None,
    ignore_index: int = -100,
    entropy_coef: float | Tensor = 0.0,
    kl_coef: float | Tensor = 0.0,
    kl: Divergence = "k3",
    rollout_cap: float = 2.0,
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
    floor: Tensor | None = None,
    floor_scope: FloorScope = "all",
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
    """Return the policy loss with an entropy bonus, straight from hidden states. The forward pass also forms its gradients.

        loss = sum_n n_n (-w_n s_n + kl_coef_n k_n) - sum_n m_n entropy_coef_n H_n
        ppo:   s = min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(logprobs - old_logprobs)
        cispo: s = sg[clip(r, 1 - clip_low, 1 + clip_high)] A logprobs
        k = d (k1), |d| (abs_k1), d^2 / 2 (k2), exp(-d) + d - 1 (k3), d = logprobs - ref_logprobs

    GRPO is ppo with aggregation "sequence_mean". DAPO is ppo with "token_mean" and clip_high > clip_low. Dr.GRPO is "constant" with
    normalizer = responses * longest response. For a sequence-level ratio (GSPO), use `aer_kernels.objectives.sequence` on `fused_logprobs`.

    Arguments that are not listed here are those of `fused_logprobs`.

    Args:
        advantages: float, broadcastable to targets, for example (B, 1).
        old_logprobs: like targets, in nats, of the policy that the ratio refers to. None means strictly on-policy: ratio 1, with gradient.
        ref_logprobs: like targets, in nats, for the divergence term. They are those of a reference policy, or old_logprobs themselves.
            kl_coef needs them.
        rollout_logprobs: like targets, in nats, as the rollout backend gave them. The surrogate gets the weight
            w = sg[min(exp(logprobs - rollout_logprobs), rollout_cap)]. Where old_logprobs are given they take the place of logprobs.
        importance_weights: broadcastable to targets, >= 0. A further detached factor of the surrogate. None means 1.
        entropy_coef: coefficient of each token: > 0 raises entropy, < 0 lowers it. A float, or a tensor broadcastable to targets.
        kl_coef: coefficient of the divergence, >= 0. A float, or a tensor broadcastable to targets.
        kl: which estimate k of the divergence.
        rollout_cap: the largest weight from rollout_logprobs, > 0.
        objective: "ppo" or "cispo".
        clip_low: lower bound of the ratio is 1 - clip_low, >= 0. From 1 on there is none.
        clip_high: upper bound of the ratio is 1 + clip_high, >= 0.
        dual_clip: bound of the dual clip, > 1. None is no dual clip.
        aggregation: weights n_n of the policy and KL terms. "token_mean": 1 / normalizer. "sequence_mean": 1 / (normalizer * loss tokens
            of n's sequence). "constant": 1 / normalizer, which must then be given.
        sequence_ids: like targets, int in [0, N). Which sequence a token belongs to, for "sequence_mean". None: each row of a targets
            with two or more dimensions is one sequence.
        normalizer: the denominator over all micro-batches and ranks, > 0, a float or a 0-dim tensor. None means this call's loss tokens
            (token_mean) or sequences (sequence_mean).
        entropy_normalizer: denominator of the entropy term, > 0: m_n = 1 / entropy_normalizer, the loss tokens of the whole update. A
            coefficient then means the same under every aggregation. None means normalizer for token_mean, else this call's loss tokens;
            for another aggregation with normalizer and entropy_coef it must be given.
        row_tol: leave a token out of the gradient products if |ds/dlogprob| (1 - p_y) + |entropy_coef| H <= row_tol, >= 0. That is half the
            bound on the L1 norm of its d(loss)/d(logits), before the division by normalizer. 0 leaves out exactly the tokens without a
            gradient, such as clipped ratios. Each chunk then costs a device read. None means 0 on a CPU, where reading is free, and off on
            a GPU.
    Returns:
        PolicyLossOutput(loss, logprobs, entropy, metrics). The metrics are num_tokens, num_grad_tokens (tokens with a gradient), clip_frac
        and its parts clip_frac_low, clip_frac_high, clip_frac_dual, ratio_mean, ratio_max, approx_kl (to old_logprobs, nats), entropy
        (nats), and dropped_l1, the bound on the L1 norm of the d(loss)/d(logits) that row_tol left out. With ref_logprobs there is also
        ref_kl, the mean of k in nats.
    Raises:
        ValueError: a shape, device or range is wrong, or the budget is too small.
        TypeError: a dtype is wrong.

    Gradients: of the loss with respect to hidden, weight, bias, lora_a and lora_b, each formed only when it is needed.

    Numerics: logits, statistics and sums of weight gradients are fp32, and a call repeats bit for bit. The log-ratio is clamped to +-20.

    Cost: 6 N*V*D FLOPs, and 2 for a row whose gradient is exactly zero (zero advantage and zero coefficient). The gradients of hidden and
    weight are held from the forward to the backward pass, rounded once to their dtype. `aer_kernels.plan.plan_policy_loss` predicts the
    workspace.

    Source: the entropy term is this project's form of arXiv:2510.10959. PPO arXiv:1707.06347, dual clip arXiv:1912.09729,
    DAPO arXiv:2503.14476, Dr.GRPO arXiv:2503.20783, CISPO arXiv:2506.13585. `aer_kernels.reference` has the derivation, equations (1)-(16).
    """
    surrogate = make_surrogate(objective, clip_low, clip_high, dual_clip, kl, rollout_cap)
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
        floor=floor,
        floor_scope=floor_scope,
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
    weighting = aggregate(aggregation, targets, tokens.keep, sequence_ids, normalizer, entropy_normalizer, entropy_coef, dtype)
    inputs = policy_inputs(
        tokens,
        targets,
        weighting,
        rollout_cap,
        dtype,
        advantages=advantages,
        importance_weights=importance_weights,
        entropy_coef=entropy_coef,
        kl_coef=kl_coef,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        rollout_logprobs=rollout_logprobs,
        debug_checks=debug_checks,
    )
    if impl == "reference":
        loss, found, entropy, numbers, dropped = full_logits.policy_loss(head, inputs, surrogate, weighting.scale)
    else:
        policy = PolicyArguments(*inputs, *astuple(surrogate), weighting.scale, row_tol)  # type: ignore[call-arg]
        loss, found, entropy, numbers, dropped = policy_loss(*head, *policy, main_grad)[:5]
    if head.floor is not None:
        tokens.check_kept(entropy, found, debug_checks)
    metrics = dict(zip(METRICS, numbers.detach().unbind(), strict=True)) | {"dropped_l1": dropped.detach().clone()}
    if ref_logprobs is None:
        del metrics["ref_kl"]
    found, entropy = (x.detach().reshape(targets.shape) for x in (found, entropy))
    return PolicyLossOutput(loss, found, entropy, metrics)


def logprobs_from_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    floor: Tensor | None = None,
    floor_scope: FloorScope = "all",
    loss_mask: Tensor | None = None,
    ignore_index: int = -100,
    inplace_backward: bool = False,
    impl: Implementation = "auto",
    debug_checks: bool | None = None,
) -> LogprobsOutput:
    """Return the log-prob of each target and the entropy of each row, for trainers that already hold the logits.

    Arguments that are not listed here are those of `fused_logprobs`.

    Args:
        logits: (..., V) fp32, bf16 or fp16; also fp64 with impl "torch" or "reference".
        inplace_backward: write the gradient over the logits, instead of into (N, V) memory of its own. The logits are then lost: whoever
            reads them after the backward pass reads their gradient, and a second backward pass is an error.
    Returns:
        LogprobsOutput(logprobs, entropy, logsumexp), each (...) fp32, in nats. The first two are differentiable.
    Raises:
        ValueError: a shape, device or range is wrong.
        TypeError: a dtype is wrong.

    Gradients: of logits, in their dtype; exactly 0 in ignored rows.

    Cost: one read of the rows that count forward; one read and one write backward. Statistics are fp32 whatever the dtype. The device is
    never read. The logits are copied only if their last dimension is strided.
    """
    check_common(impl, temperature, softcap, None)
    check_logits(logits, targets, impl)
    check_impl(impl, logits.device)
    tokens = find_tokens(targets, loss_mask, ignore_index, temperature, 0, logits.shape[-1], debug_checks, logits.dtype)
    flat = logits.reshape(-1, logits.shape[-1])
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    floors = tokens.floor(floor, floor_scope, targets, logits.dtype, debug_checks)
    given = (tokens.targets, tokens.keep, tokens.token_temperature, floors, tokens.temperature, softcap)
    rows = LogitsArguments(flat, *given, floor_scope == "entropy", impl)
    outputs = full_logits.row_statistics(flat, None, rows) if impl == "reference" else logits_statistics(*rows, inplace_backward)
    if floors is not None:
        tokens.check_kept(outputs[1], outputs[0], debug_checks)
    found, entropy, logsumexp = (x.reshape(targets.shape) for x in outputs[:3])
    return LogprobsOutput(found, entropy, logsumexp.detach())
