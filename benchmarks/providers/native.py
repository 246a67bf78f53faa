"""PyTorch's own linear cross-entropy (2.13 and later)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.providers.base import Provider, Unavailable
from benchmarks.workloads import Case


def _loss(case: Case) -> Callable[[], Tensor]:
    function = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if function is None:
        raise Unavailable(f"needs torch >= 2.13, this is {torch.__version__}")
    return lambda: function(case.hidden, case.weight, case.targets)


NATIVE = Provider("F.linear_cross_entropy", None, losses={"cross_entropy": _loss}, differs="cross-entropy only")
