"""What this machine has, and what a configuration will need."""

from __future__ import annotations

import importlib.util
import logging
import os
from contextlib import nullcontext
from typing import Any

import torch

from aer_kernels.plan import plan_policy_loss
from aer_train import sharding
from aer_train.config.method import needs_reference
from aer_train.config.tree import MOST_ROWS, MOST_TOKENS, TrainConfig
from aer_train.memory.costs import Costs, measure_costs
from aer_train.memory.free import free_bytes
from aer_train.memory.sizes import OVERHEAD, cast_bytes, costs_of, fitting, moment_bytes
from aer_train.model import compute_dtype, load_error, model_source, published_config, resolve_device
from aer_train.model.lora import add_adapters, base_of
from aer_train.model.positions import positions
from aer_train.run.versions import versions

EXTRAS = {
    "train": ("transformers", "datasets", "math_verify", "pyarrow", "tyro", "rich", "yaml"),
    "lora": ("peft",),
    "lowbit": ("torchao",),
    "liger": ("liger_kernel",),
    "vllm": ("vllm",),
    "report": ("matplotlib",),
    "track": ("tensorboard", "trackio", "wandb"),
}


def describe_machine() -> dict[str, str]:
    """Return what there is, as text by name: versions, GPU, CPU threads, extras."""
    found = {name: version or "not installed" for name, version in versions().items()}
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found["GPU"] = (
            f"{torch.cuda.device_count()} x {gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, compute capability {gpu.major}.{gpu.minor}"
        )
    else:
        found["GPU"] = "none: float32 on the CPU"
    found["CPU"] = f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        found[f"extra {extra}"] = "installed" if not missing else f"missing {', '.join(missing)}: pip install 'aer-rl[{extra}]'"
    return found


def predict_memory(config: TrainConfig, processes: int = 1) -> dict[str, int]:
    """Predict the bytes that a configuration needs, by what they are for. Sizes that it leaves open are those that would fit now.

    Activations and cache are left out for the few models whose shapes depend on values.

    Only the model's config is read (downloaded for a hub id), never its weights.

    Args:
        processes: over how many the parameters are sharded; the bytes are those of each.
    Raises:
        ValueError - the folder does not exist; LookupError - the model's config cannot be read, for example without a network.
    """
    from transformers import AutoModelForCausalLM

    source = model_source(base_of(config.model).name)
    try:
        model_config = published_config(source, config.model)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=config.model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise LookupError(load_error(error)) from error
    if config.model.lora_rank:
        with torch.device("meta"):
            add_adapters(model, config.model)
    device = resolve_device(config.run.device)
    dtype = compute_dtype(config.model.dtype, device)
    parameters = sum(p.numel() for p in model.parameters())
    share = -(-parameters // processes)
    layers = [sum(p.numel() for p in layer.parameters()) for layer in sharding.layers(model)]
    root, layer = parameters - sum(layers), max(layers)
    vocab_size, hidden_size = model.get_output_embeddings().weight.shape
    costs = _costs(config, model_config, device, dtype)
    width = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    moved = -(-sum(p.numel() for p in model.parameters() if p.requires_grad) // processes)
    stored, moments = getattr(torch, config.model.param_dtype), moment_bytes(config.optim)
    reference = stored.itemsize * share if needs_reference(config) and not config.model.lora_rank else 0
    cast = cast_bytes(stored, dtype)
    free = free_bytes(device) - (stored.itemsize + cast) * share - (4 + moments) * moved - reference
    fits = (MOST_TOKENS, MOST_ROWS) if costs is None else fitting(costs, free, width, device)
    tokens, rows = config.optim.tokens_per_microbatch or fits[0], config.rollout.batch_size or fits[1]
    budget = config.optim.loss_memory_mib
    loss = plan_policy_loss(
        tokens,
        vocab_size,
        hidden_size,
        dtype=dtype,
        device=device,
        memory_budget=None if budget is None else budget << 20,
    )
    return {
        f"parameters ({config.model.param_dtype})": stored.itemsize * share,
        "gradients (float32)": 4 * moved,
        f"AdamW moments ({config.optim.state})": moments * moved,
        **({f"frozen reference ({config.model.param_dtype})": reference} if reference else {}),
        **(_gathered(root, layer, parameters, dtype) if processes > 1 else {}),
        **({"parameters cast for products": cast * parameters} if processes == 1 and cast else {}),
        **({} if costs is None else {f"activations of {tokens:,} tokens": int(tokens * OVERHEAD * costs.activations(width))}),
        "loss workspace": loss.workspace_bytes,
        **_loss_gradients(config, tokens * hidden_size * dtype.itemsize, vocab_size * hidden_size * dtype.itemsize),
        **_sampling(config, parameters, rows, None if costs is None else int(rows * width * costs.cache), dtype),
        "not needed: float32 logits of the loss": 4 * tokens * vocab_size,
    }


def _loss_gradients(config: TrainConfig, hidden: int, head: int) -> dict[str, int]:
    """Those of an lm_head that is not trained are not formed."""
    if config.model.lora_rank:
        return {"loss gradients of hidden states": hidden}
    return {"loss gradients of hidden states and lm_head": hidden + head}


def _gathered(root: int, layer: int, parameters: int, dtype: torch.dtype) -> dict[str, int]:
    """What is whole at times, from the numbers of parameters of the root (embedding and lm_head), of a layer, and of all together.

    The next layer is gathered while one works; the gradients of the root wait for the end of the backward pass and are summed in float32.
    """
    return {
        "gathered while training: lm_head, embedding, two layers": dtype.itemsize * (root + 2 * layer),
        "whole gradients on their way to the sum": (dtype.itemsize + 4) * max(root, layer),
        "gathered while sampling (rollout.backend hf): all": dtype.itemsize * parameters,
    }


def _sampling(config: TrainConfig, parameters: int, rows: int, cache: int | None, dtype: torch.dtype) -> dict[str, int]:
    """What sampling needs on the GPU of a training process; nothing with servers elsewhere."""
    if config.rollout.backend == "hf":
        return {} if cache is None else {f"rollout cache, {rows} responses to the longest prompts": cache}
    if config.vllm.urls:
        return {}
    weights = dtype.itemsize * parameters // config.vllm.tensor_parallel_size
    return {"vLLM's weights (its cache fills vllm.gpu_memory_utilization)": weights}


def _costs(config: TrainConfig, model_config: Any, device: torch.device, dtype: torch.dtype) -> Costs | None:
    """What a token costs, from a model without memory; None for a model that needs values to run."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level, autocast = logger.level, nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
    logger.setLevel(logging.CRITICAL)
    try:
        with FakeTensorMode(), torch.device(device):
            model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=config.model.trust_remote_code)
            return costs_of(config, model, measure_costs(model, device, autocast, positions(model_config)))
    except Exception:  # models do in Python what they like
        return None
    finally:
        logger.setLevel(level)
