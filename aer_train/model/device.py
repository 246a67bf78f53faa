"""Where a policy computes, and how precisely."""

from __future__ import annotations

import torch

from aer_train import dist


def resolve_device(name: str) -> torch.device:
    """Return the device for `run.device`.

    Raises:
        ValueError - cuda is asked for and there is none, or there are more processes than GPUs.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device must be auto or cpu on a machine without a CUDA GPU, got cuda")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if dist.local_rank() >= gpus:
        raise ValueError(f"--nproc-per-node must be at most the number of GPUs, {gpus}, got local rank {dist.local_rank()}")
    return torch.device("cuda", dist.local_rank())


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the products for `model.dtype`."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
