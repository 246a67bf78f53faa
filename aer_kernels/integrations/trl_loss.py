"""What a method's terms do to TRL's loss. The loss itself stays TRL's; `trainer` is a GRPOTrainer, `inputs` what its `_compute_loss` gets.

    loss = TRL's loss (advantages, clip bounds)  -  sum_t entropy_scale entropy_coef_t H_t / T  +  sum_t n_t divergence_coef_t |k1_t|

T: loss tokens of an optimizer step over all its micro-batches and ranks; n_t: what TRL's loss type multiplies a token's loss by.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from aer_kernels.integrations.control import spread
from aer_kernels.methods import TokenBatch, TokenTerms
from aer_kernels.objectives.entropy_change import EntropySlopes, entropy_slopes

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""Loss types whose ratio has the two bounds that `TokenTerms.clip_low` and `clip_high` mean."""

COEF, DIVERGENCE, HELD = "aer_coef", "aer_divergence", "aer_held"
"""Names among the inputs: (B, T) fp32 each, 0 outside the loss tokens."""


def refuse(trainer: Any, terms: TokenTerms) -> None:
    """Raise ValueError for terms that TRL's loss cannot carry."""
    moved = terms.moved()
    if moved & {"weight", "shift"} and trainer.importance_sampling_level == "sequence":
        raise ValueError("importance_sampling_level must be 'token' for a method that weighs tokens, got 'sequence': it takes their mean")
    if moved & {"clip_low", "clip_high", "dual_clip"} and trainer.loss_type not in CLIPPED:
        raise ValueError(f"loss_type must be one of {', '.join(CLIPPED)} for a method that moves clip bounds, got {trainer.loss_type!r}")


def place(terms: TokenTerms, tokens: TokenBatch, everywhere: Tensor, inputs: dict[str, Any], first: int) -> None:
    """Put what the terms say of this rank's samples among their inputs; TRL's loss takes advantages (B, T), one a token.

    Args:
        everywhere: (R, T) bool, where the tokens are among the padded rows of all ranks.
        first: row of this rank's first sample.
    """
    own = inputs["advantages"].view(len(inputs["advantages"]), -1)

    def mine(values: Tensor, fill: float = 0.0) -> Tensor:
        return spread(values, everywhere, fill)[first : first + len(own), : inputs["completion_mask"].shape[1]]

    if terms.shift is not None:
        own = own + mine(terms.shift)
    if terms.weight is not None:
        own = own * mine(terms.weight, 1.0)
    if {"weight", "shift"} & terms.moved():
        inputs["advantages"] = own
    held = torch.ones_like(tokens.logprobs) if terms.held is None else terms.held
    given = {HELD: held, COEF: terms.entropy_coef, DIVERGENCE: terms.divergence_coef}
    inputs.update({name: mine(values) for name, values in given.items() if values is not None})


def loss_mask(inputs: dict[str, Any]) -> Tensor:
    """(B, T) 0/1."""
    mask: Tensor = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def step_tokens(trainer: Any, inputs: dict[str, Any]) -> Tensor:
    """T, 0-dim, divided by the number of ranks, whose gradients are averaged. TRL counts the tokens of a whole batch of rollouts."""
    tokens: Tensor = inputs["num_items_in_batch"].clamp(min=1) / trainer.accelerator.num_processes
    return tokens * trainer.current_gradient_accumulation_steps / trainer.args.steps_per_generation


@contextmanager
def clip_bounds(trainer: Any, terms: TokenTerms) -> Iterator[None]:
    """The method's bounds of the ratio, while TRL's loss is computed."""
    before = trainer.epsilon_low, trainer.epsilon_high, trainer.args.delta
    low, high, dual = (
        mine if mine is not None else its for mine, its in zip((terms.clip_low, terms.clip_high, terms.dual_clip), before, strict=True)
    )
    trainer.epsilon_low, trainer.epsilon_high, trainer.args.delta = low, high, dual
    try:
        yield
    finally:
        trainer.epsilon_low, trainer.epsilon_high, trainer.args.delta = before


def added(trainer: Any, loss: Tensor, scale: float, inputs: dict[str, Any], logprobs: Tensor, entropy: Tensor) -> Tensor:
    """Return TRL's loss with the entropy bonus and the divergence.

    Args:
        scale: `TokenTerms.entropy_scale`.
        logprobs, entropy: (B, T) nats, of the pass that TRL's loss was made from, with their gradients.
    """
    tokens = step_tokens(trainer, inputs)
    if COEF in inputs and scale != 0:
        loss = loss - scale * ((inputs[COEF] * entropy).sum() / tokens)
    if DIVERGENCE in inputs and "old_per_token_logps" in inputs:  # without, this pass is that of the policy that sampled
        distance = inputs[DIVERGENCE] * (logprobs - inputs["old_per_token_logps"]).abs()
        loss = loss + (aggregation(trainer, loss_mask(inputs), tokens) * distance).sum()
    return loss


def aggregation(trainer: Any, mask: Tensor, tokens: Tensor) -> Tensor:
    """Return n_t, (B, 1) or 0-dim."""
    kind = trainer.loss_type
    if kind in ("cispo", "dapo", "vespo"):
        return 1.0 / tokens
    if kind in ("grpo", "sapo"):
        count = len(mask) * mask.sum(1, keepdim=True).clamp(min=1)
    elif kind == "bnpo":
        count = mask.sum().clamp(min=1)
    elif kind in ("dr_grpo", "luspo"):
        count = torch.tensor(len(mask) * (trainer.max_completion_length if kind == "dr_grpo" else 1), device=mask.device)
    else:
        raise ValueError(f"loss_type must be one that this adapter was tested with for a method with a divergence, got {kind!r}")
    return 1.0 / (count * trainer.current_gradient_accumulation_steps)


def slopes(trainer: Any, loss: Tensor, inputs: dict[str, Any], logprobs: Tensor, entropy: Tensor) -> EntropySlopes:
    """Return where the gradient of TRL's loss, and a unit of entropy_scale, move the entropy.

    The gradient at the log-probs is TRL's own, with its ratios, bounds, weights and divergence; it costs no pass of the model.
    """
    (gradient,) = torch.autograd.grad(loss, logprobs, retain_graph=True)
    found = logprobs.detach()
    ratio = (found - inputs.get("old_per_token_logps", found)).exp()  # sampled by an older policy, as in TRL's gradient
    return entropy_slopes(
        found,
        entropy.detach(),
        advantages=-gradient * step_tokens(trainer, inputs),
        weights=inputs[COEF] * ratio,
        loss_mask=loss_mask(inputs),
    )
