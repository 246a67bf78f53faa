"""impl="reference": what the operators compute, by the equations of `aer_kernels.reference` on full logits, differentiated by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from aer_kernels import reference
from aer_kernels.objectives.policy import PolicyInputs, Surrogate, policy_metrics, policy_tokens
from aer_kernels.operators.arguments import HeadArguments, LogitsArguments, without_autocast


def head_statistics(head: HeadArguments) -> tuple[Tensor, ...]:
    """Return (logprobs, entropy, logsumexp) of each token, from full logits and differentiable by autograd."""
    dtype = torch.promote_types(head.hidden.dtype, torch.float32)
    with without_autocast(head.hidden):
        raw = head.hidden.to(dtype) @ head.weight.to(dtype).T
        if head.lora_hidden is not None and head.lora_weight is not None:
            raw = raw + head.lora_hidden.to(dtype) @ head.lora_weight.to(dtype).T
        return row_statistics(raw, head.bias, head)


def row_statistics(raw: Tensor, bias: Tensor | None, a: HeadArguments | LogitsArguments) -> tuple[Tensor, ...]:
    """Equations (2)-(5) for the rows that count, 0 elsewhere."""
    rows = a.keep.nonzero().squeeze(1)
    divisor = a.temperature if a.token_temperature is None else a.token_temperature[rows]
    z = reference.temper(raw[rows].to(torch.promote_types(raw.dtype, torch.float32)), bias, divisor, a.softcap)
    floor = None if a.floor is None else a.floor[rows].to(z.dtype)
    found = reference.token_statistics(z, a.targets[rows], floor, "entropy" if a.entropy_floor else "all")
    return tuple(x.new_zeros(a.keep.numel()).index_copy(0, rows, x) for x in found)


def policy_loss(head: HeadArguments, inputs: PolicyInputs, surrogate: Surrogate, scale: Tensor) -> tuple[Tensor, ...]:
    """Return what the operator of the policy loss returns first: loss, logprobs, entropy, metrics, and what was dropped (0)."""
    found, entropy, _ = head_statistics(head)
    advantages = inputs.advantages
    if inputs.rollout_logprobs is not None:
        advantages = advantages * reference.rollout_weights(found, inputs.rollout_logprobs, surrogate.rollout_cap)
    bounds = (surrogate.kind, surrogate.clip_low, surrogate.clip_high, surrogate.dual_clip)
    terms = -reference.policy_surrogate(found, inputs.old_logprobs, advantages, *bounds)
    if inputs.ref_logprobs is not None and inputs.kl_coef is not None:
        terms = terms + inputs.kl_coef * reference.divergence(found, inputs.ref_logprobs, surrogate.kl)
    loss = torch.where(head.keep, inputs.weights * terms - inputs.entropy_weights * entropy, 0.0).sum() * scale
    with torch.no_grad():
        metrics = policy_metrics(policy_tokens(found, entropy, inputs, surrogate), entropy, inputs, head.keep)
    return loss, found, entropy, metrics, torch.zeros_like(loss)
