"""The model that a policy with adapters is, as an ordinary folder."""

from __future__ import annotations

from pathlib import Path

import torch

from aer_train.config.tree import ModelConfig
from aer_train.model import load_policy
from aer_train.model.lora import adapted_model


def merge(folder: Path, out: Path, trust_remote_code: bool = False) -> None:
    """Write the model with its adapters added (float32), its tokenizer and its generation config, as transformers loads them.

    Args:
        folder: a checkpoint with adapters, or any folder with LoRA adapters of PEFT.
        out: must not exist yet.
    Raises:
        ValueError - there are no adapters, or `out` exists.
    """
    if adapted_model(str(folder)) is None:
        raise ValueError(f"merge must be given a run or a folder with LoRA adapters, got {folder}")
    if out.exists():
        raise ValueError(f"--out must not exist yet, got {out}")
    config = ModelConfig(str(folder), dtype="float32", share_prompts=False, trust_remote_code=trust_remote_code)
    policy = load_policy(config, torch.device("cpu"))
    policy.model.save_pretrained(out)
    policy.tokenizer.save_pretrained(out)
    policy.generation_config.to_json_file(out / "generation_config.json")
