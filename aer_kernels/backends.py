"""Which row operations an implementation uses: PyTorch's (`torch_rows`) or Triton's (`kernels`)."""

from __future__ import annotations

from types import ModuleType

import torch


def row_backend(impl: str, device: torch.device) -> ModuleType:
    """The row operations for an implementation other than reference. Nothing falls back silently."""
    if impl == "torch" or (impl == "auto" and device.type == "cpu"):
        from aer_kernels import torch_rows

        return torch_rows
    try:
        from aer_kernels import kernels
    except ImportError as error:
        raise ImportError("impl='triton' needs Triton: pip install triton, or use impl='torch'") from error
    return kernels
