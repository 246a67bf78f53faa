"""Options that need another package, a GPU or a single process: refused before anything is loaded."""

from __future__ import annotations

import importlib.util

import torch

from aer_train import dist
from aer_train.config.tree import TrainConfig
from aer_train.model.device import compute_dtype


def check_extras(config: TrainConfig, device: torch.device) -> None:
    """Prove that what the configuration asks for can be had here.

    Args:
        device: that the policy will be on.
    Raises:
        ImportError - a package is missing; says which extra has it. ValueError - there is no GPU, or there are several processes.
    """
    model = config.model
    if model.param_dtype == "bfloat16" and compute_dtype(model.dtype, device) != torch.bfloat16:
        raise ValueError(f"model.dtype must be bfloat16 for model.param_dtype bfloat16 on a CPU, got {model.dtype}")
    thin = {"model.param_dtype": (model.param_dtype, "bfloat16"), "optim.state": (config.optim.state, "8bit")}
    for name, (value, needs_torchao) in thin.items():
        if value == needs_torchao and dist.world() > 1:
            raise ValueError(f"{name} must be float32 with several processes, whose shards need no more memory, got {value}")
        if value == needs_torchao and importlib.util.find_spec("torchao") is None:
            raise ImportError(f'{name} {value} needs: pip install "aer-rl[lowbit]"')
    if model.liger and device.type != "cuda":
        raise ValueError("model.liger must be False without a GPU, got True")
    if model.liger and importlib.util.find_spec("liger_kernel") is None:
        raise ImportError('model.liger needs: pip install "aer-rl[liger]"')
