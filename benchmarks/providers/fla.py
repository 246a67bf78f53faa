"""flash-linear-attention: fused linear cross-entropy."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from benchmarks.providers.base import Provider, load, need_gpu
from benchmarks.workloads import Case


def _loss(case: Case) -> Callable[[], Tensor]:
    need_gpu(case, "its Triton kernel")
    loss = load("fla.modules").FusedLinearCrossEntropyLoss()
    return lambda: loss(case.hidden, case.targets, case.weight)


FLA = Provider("flash-linear-attention", "flash-linear-attention", losses={"cross_entropy": _loss}, differs="cross-entropy only")
