"""What a method's terms do to verl's loss. The loss itself stays verl's; it runs in the workers, on a micro-batch.

    loss = verl's loss (advantages, clip bounds)  -  sum_t entropy_scale entropy_coef_t H_t / T  +  aggregate(divergence_coef_t |k1_t|)

T: loss tokens of the mini-batch over all micro-batches and ranks, whatever `loss_agg_mode`; the distance is aggregated as verl aggregates
its policy term. Weights and shifts are in the advantages already.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from aer_kernels.methods import TokenTerms
from aer_kernels.objectives.entropy_change import entropy_slopes

COEF, DIVERGENCE = "aer_coef", "aer_divergence"
"""Fields of the queue, jagged like the responses, fp32, 0 outside the loss tokens."""

SCALARS = "aer_scalars"
"""What the workers are told beside: entropy_scale, and clip bounds by verl's names."""

SLOPES = ("aer_slope_policy", "aer_slope_bonus")
"""Metrics: `EntropySlopes.policy` and `bonus` of a mini-batch."""


def scalars(terms: TokenTerms) -> dict[str, float]:
    """Return SCALARS."""
    named = {"clip_ratio_low": terms.clip_low, "clip_ratio_high": terms.clip_high, "clip_ratio_c": terms.dual_clip}
    return {"entropy_scale": terms.entropy_scale} | {name: value for name, value in named.items() if value is not None}


def aer_ppo_loss(config: Any, model_output: Any, data: TensorDict, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
    """Return verl's loss with the entropy bonus and the divergence, and its metrics; arguments as for verl's `ppo_loss`."""
    told = dict(tu.get_non_tensor_data(data, SCALARS, {}))
    scale = told.pop("entropy_scale", 1.0)
    config = replace(config, **told) if told else config
    logprobs = model_output["log_probs"].values()  # a name for what the loss is made of, to take its gradient there
    output = {**model_output, "log_probs": torch.nested.nested_tensor_from_jagged(logprobs, model_output["log_probs"].offsets())}
    loss, metrics = ppo_loss(config, output, data, dp_group)
    if COEF in data:
        found = _padded(data, COEF)
        entropy = no_padding_2_padding(model_output["entropy"], data)
        per_token = data["dp_size"] / data["batch_num_tokens"]  # ranks are averaged
        bonus = scale * (found[COEF] * found["response_mask"] * entropy).sum() * per_token
        metrics |= _measure_slopes(loss, logprobs, entropy, found, data) | {"actor/aer_bonus": _total(bonus)}
        loss = loss - bonus
    if DIVERGENCE in data:
        found = _padded(data, DIVERGENCE)
        distance = found[DIVERGENCE] * (no_padding_2_padding(logprobs, data) - found["old_log_probs"]).abs()
        penalty = agg_loss(distance, found["response_mask"].bool(), config.loss_agg_mode, **config.global_batch_info)
        metrics["actor/aer_divergence"] = _total(penalty)
        loss = loss + penalty
    return loss, metrics


def _padded(data: TensorDict, name: str) -> TensorDict:
    return data.select(name, "response_mask", "old_log_probs").to_padded_tensor()


def _total(value: Tensor) -> Metric:
    """Summed over micro-batches, averaged over ranks and mini-batches."""
    return Metric(value=value.detach(), aggregation=AggregationType.SUM)


def _measure_slopes(loss: Tensor, logprobs: Tensor, entropy: Tensor, found: TensorDict, data: TensorDict) -> dict[str, Metric]:
    """Where the gradient of verl's loss, and a unit of entropy_scale, move the entropy. It costs no pass of the model."""
    (gradient,) = torch.autograd.grad(loss, logprobs, retain_graph=True)
    now = no_padding_2_padding(logprobs.detach(), data)
    ratio = (now - found["old_log_probs"]).exp()  # sampled by an older policy, as in verl's gradient
    slopes = entropy_slopes(
        now,
        entropy.detach(),
        advantages=-no_padding_2_padding(gradient, data) * data["batch_num_tokens"],
        weights=found[COEF] * ratio * data["dp_size"],
        loss_mask=found["response_mask"],
    )
    return {name: _total(value) for name, value in zip(SLOPES, (slopes.policy, slopes.bonus), strict=True)}
