"""From a name to a policy that is proved to be usable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from aer_train import dist, sharding
from aer_train.config.tree import ModelConfig
from aer_train.memory.errors import is_out_of_memory, memory_errors
from aer_train.model.batch_probe import prove_batches
from aer_train.model.device import compute_dtype
from aer_train.model.ends import turn_end, with_stops
from aer_train.model.liger import use_liger
from aer_train.model.lora import adapted_model, add_adapters, base_of, fold_adapters, load_adapters
from aer_train.model.policy import Policy
from aer_train.model.probes import probe_unpadded, prove_head, share_prompts
from aer_train.model.recompute import recompute_layers
from aer_train.model.source import load_error, model_source, published_config


@memory_errors("take a smaller model (model.name), or a machine with more memory")
def load_policy(config: ModelConfig, device: torch.device, *, adapters: Path | None = None, seed: int = 0) -> Policy:
    """Load model and tokenizer, and prove on a few tokens that hidden states and lm_head reproduce the model's logits.

    With several processes the parameters are sharded over them, and all must call this together.

    Args:
        config: `name` may be a hub id, a folder, or builtin:countdown. Of a folder with adapters, the merged model is loaded.
        device: where the parameters live.
        adapters: with model.lora_rank, the folder whose adapters to go on with; None begins with new ones.
        seed: of new adapters.
    Raises:
        ValueError - the model cannot be found or read, has no tokenizer usable for padding, or would not be trained rightly.
        MemoryError - it does not fit.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()  # of every load and save of weights; downloads still show theirs
    if not dist.is_main():
        set_verbosity_error()

    folded = adapted_model(config.name)
    if folded is not None and config.lora_rank:
        raise ValueError(f"model.name must be a whole model for model.lora_rank > 0 (aer-train merge makes one), got {config.name!r}")
    config = base_of(config)
    source, options = model_source(config.name), {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    try:
        model_config = published_config(source, config)
        parameters = getattr(torch, config.param_dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(source, config=model_config, dtype=parameters, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if folded is not None:
            add_adapters(model, folded[1])
            load_adapters(model, folded[0])
            fold_adapters(model)
    except Exception as error:  # also of the model's own code
        if is_out_of_memory(error):
            raise
        raise ValueError(f"model.name must be a Hugging Face model id or folder, got {config.name!r}: {load_error(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model.name must have a tokenizer with an end-of-sequence token, got {config.name!r}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    dtype = compute_dtype(config.dtype, device)
    if config.lora_rank:
        add_adapters(model, config, seed)
    if adapters is not None:
        load_adapters(model, adapters)
    if dist.world() > 1:
        sharding.shard(model, device, dtype)
    else:
        model.to(device)
        for parameter in model.parameters() if config.param_dtype != "float32" else ():
            parameter.grad_dtype = torch.float32  # micro-batches add up in it
    model.eval()
    if config.gradient_checkpointing:
        recompute_layers(model)
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"model.name must be a model with a readable lm_head, got {config.name!r} with {type(head).__name__}")
    published, ends = model.generation_config, model.generation_config.eos_token_id
    eos_ids = frozenset([tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [] if ends is None else [ends])])
    model.generation_config = GenerationConfig(eos_token_id=sorted(eos_ids), pad_token_id=tokenizer.pad_token_id)
    policy = Policy(model, tokenizer, head, None, dtype, eos_ids, published, unpad=config.unpad)
    end = turn_end(tokenizer)
    policy = prove_head(policy if end is None else with_stops(policy, [end]), config.name)
    if config.liger:
        use_liger(policy, config.name)
    prove_batches(policy, config.name)
    if config.unpad:
        probe_unpadded(policy, config.name)
    return share_prompts(policy, config.name, config.share_prompts)
