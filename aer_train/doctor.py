"""What this machine has, and what a configuration will need."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

import torch

from aer_kernels.plan import plan_policy_loss
from aer_train import sharding
from aer_train.config import TrainConfig
from aer_train.model import compute_dtype, model_source, resolve_device

PACKAGES = ("aer-rl", "torch", "triton", "transformers", "vllm", "datasets", "math-verify", "tyro", "numpy")
EXTRAS = {
    "train": ("transformers", "datasets", "math_verify", "pyarrow", "tyro", "rich", "yaml"),
    "vllm": ("vllm",),
    "report": ("matplotlib",),
    "track": ("tensorboard", "trackio", "wandb"),
}


def versions() -> dict[str, str | None]:
    """Return Python's and the packages' versions; None for a package that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


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
    """Predict the bytes that a configuration needs, by what they are for; the model's own activations are not among them.

    Only the model's config is read (downloaded for a hub id), never its weights.

    Args:
        processes: over how many the parameters are sharded; the bytes are those of each.
    Raises:
        ValueError - the folder does not exist; LookupError - the model's config cannot be read, for example without a network.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    source = model_source(config.model.name)
    try:
        model_config = AutoConfig.from_pretrained(source, revision=config.model.revision)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_config)
    except (OSError, ValueError) as error:
        raise LookupError(str(error).strip().splitlines()[0]) from error
    device = resolve_device(config.run.device)
    dtype = compute_dtype(config.model.dtype, device)
    parameters = sum(p.numel() for p in model.parameters())
    share = -(-parameters // processes)
    layers = [sum(p.numel() for p in layer.parameters()) for layer in sharding.layers(model)]
    root, layer = parameters - sum(layers), max(layers)
    vocab_size, hidden_size = model.get_output_embeddings().weight.shape
    tokens = config.optim.tokens_per_microbatch
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
        "parameters (float32)": 4 * share,
        "gradients (float32)": 4 * share,
        "AdamW moments (float32)": 8 * share,
        **(_gathered(root, layer, parameters, dtype) if processes > 1 else {}),
        **({"parameters cast for products": 2 * parameters} if processes == 1 and dtype != torch.float32 else {}),
        "loss workspace": loss.workspace_bytes,
        "loss gradients of hidden states and lm_head": (tokens + vocab_size) * hidden_size * dtype.itemsize,
        **_sampling(config, parameters, _cache_row(model_config.get_text_config(), dtype), dtype),
        "not needed: float32 logits of the loss": 4 * tokens * vocab_size,
    }


def _gathered(root: int, layer: int, parameters: int, dtype: torch.dtype) -> dict[str, int]:
    """What is whole at times, from the numbers of parameters of the root (embedding and lm_head), of a layer, and of all together.

    The next layer is gathered while one works; the gradients of the root wait for the end of the backward pass and are summed in float32.
    """
    return {
        "gathered while training: lm_head, embedding, two layers": dtype.itemsize * (root + 2 * layer),
        "whole gradients on their way to the sum": (dtype.itemsize + 4) * max(root, layer),
        "gathered while sampling (rollout.backend hf): all": dtype.itemsize * parameters,
    }


def _sampling(config: TrainConfig, parameters: int, cache_row: int, dtype: torch.dtype) -> dict[str, int]:
    """What sampling needs on the GPU of a training process; nothing with servers elsewhere."""
    if config.rollout.backend == "hf":
        length = config.data.max_prompt_tokens + config.rollout.max_new_tokens
        return {"rollout cache, longest prompts": config.rollout.batch_size * length * cache_row}
    if config.vllm.urls:
        return {}
    weights = dtype.itemsize * parameters // config.vllm.tensor_parallel_size
    return {"vLLM's weights (its cache fills vllm.gpu_memory_utilization)": weights}


def _cache_row(config: Any, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_dim * dtype.itemsize


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
