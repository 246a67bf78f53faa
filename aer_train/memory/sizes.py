"""Micro-batches and batches of rollouts that fit: optim.tokens_per_microbatch and rollout.batch_size where they are not given.

They change memory and speed only. Both are powers of two, so that a little more or less free memory does not change them, and a run keeps
what it began with (config.json): it goes on bit for bit on a machine with another load.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from aer_train import dist
from aer_train.config.tree import MOST_ROWS, MOST_TOKENS, OptimConfig, TrainConfig
from aer_train.memory.costs import Costs, measure_costs, recomputed
from aer_train.memory.free import free_bytes
from aer_train.model import Policy
from aer_train.model.positions import positions

SHARE = 0.5
"""Of what is left beside parameters, gradients and moments, for the activations of a micro-batch; and, at another time, for the cache of
rollouts. The rest is for the loss, copies, and whatever else runs."""

OVERHEAD = 1.75
"""Peak of a pass by what is kept for the backward pass: temporary results, gradients of activations, holes in the heap. Measured: 1.6 for a
Llama of 135M parameters on a CPU."""

CPU_BYTES = {"activations": 3 << 30, "cache": 2 << 30}
"""Most on a CPU, where larger ones are not faster."""

LEAST_TOKENS, LEAST_ROWS = 128, 4


def with_sizes(config: TrainConfig, policy: Policy, longest_prompt: int) -> TrainConfig:
    """Return the configuration with both sizes; those that are given stay. All processes must call it together, and get the same.

    Args:
        longest_prompt: tokens.
    """
    tokens, rows = config.optim.tokens_per_microbatch, config.rollout.batch_size
    if rows is None and config.rollout.backend != "hf":
        rows = MOST_ROWS
    if tokens is None or rows is None:
        with policy.gathered():
            costs = measure_costs(policy.model, policy.device, policy.autocast(), positions(policy.model.config))
        free = free_bytes(policy.device) - _to_come(policy, moment_bytes(config.optim))
        width = longest_prompt + config.rollout.max_new_tokens
        found = dist.all_gather(fitting(costs_of(config, policy.model, costs), free, width, policy.device))
        tokens, rows = tokens or min(t for t, _ in found), rows or min(r for _, r in found)
    optim, rollout = replace(config.optim, tokens_per_microbatch=tokens), replace(config.rollout, batch_size=rows)
    return replace(config, optim=optim, rollout=rollout)


def fitting(costs: Costs, free: int, width: int, device: torch.device) -> tuple[int, int]:
    """Return the tokens of a micro-batch and the rows of a batch of rollouts that fit.

    Args:
        free: bytes beside parameters, gradients and moments.
        width: tokens of the longest prompt with its response.
    """
    share = {name: min(SHARE * free, most) if device.type == "cpu" else SHARE * free for name, most in CPU_BYTES.items()}
    tokens = share["activations"] / (OVERHEAD * costs.activations(width))
    rows = share["cache"] / max(1.0, costs.cache * width)
    return _power_of_two(tokens, LEAST_TOKENS, MOST_TOKENS), _power_of_two(rows, LEAST_ROWS, MOST_ROWS)


def costs_of(config: TrainConfig, model: object, costs: Costs) -> Costs:
    """Return the costs as the configuration trains: with or without gradient checkpointing."""
    text = model.config.get_text_config()  # type: ignore[attr-defined]
    return recomputed(costs, text.num_hidden_layers, text.hidden_size) if config.model.gradient_checkpointing else costs


def sampling_way_out(config: TrainConfig) -> str:
    """What to change when sampling does not fit."""
    if config.rollout.backend == "hf":
        return f"lower rollout.batch_size (it is {config.rollout.batch_size}) or rollout.max_new_tokens"
    return f"lower vllm.gpu_memory_utilization (it is {config.vllm.gpu_memory_utilization}) or rollout.batch_size"


def training_way_out(config: TrainConfig) -> str:
    """What to change when an update does not fit."""
    size = f"lower optim.tokens_per_microbatch (it is {config.optim.tokens_per_microbatch})"
    return size if config.model.gradient_checkpointing else f"{size}, or set model.gradient_checkpointing true"


def moment_bytes(config: OptimConfig) -> int:
    """Bytes of AdamW's two moments of a parameter. Those of 8 bits have a scale for 256, which is left out."""
    return 2 if config.state == "8bit" else 8


def cast_bytes(stored: torch.dtype, products: torch.dtype) -> int:
    """Bytes of a parameter as the products see it, beside the parameter itself."""
    return 0 if stored == products else products.itemsize


def _to_come(policy: Policy, moments: int) -> int:
    """Bytes of gradients, moments and cast parameters of this process, which are not there yet."""
    sizes = [(p.to_local().numel() if hasattr(p, "to_local") else p.numel(), p) for p in policy.model.parameters()]
    return sum(((4 + moments) * p.requires_grad + cast_bytes(p.dtype, policy.dtype)) * size for size, p in sizes)


def _power_of_two(number: float, least: int, most: int) -> int:
    return max(least, min(most, 1 << max(0, int(number)).bit_length() - 1 if number >= 1 else least))
