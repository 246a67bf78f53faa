"""QuACK: chunked linear cross-entropy on CUTLASS kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from benchmarks.providers.base import Provider, load, need_gpu
from benchmarks.workloads import Case


def _loss(case: Case, *, scaled_exp: bool) -> Callable[[], Tensor]:
    need_gpu(case, "its CUTLASS kernel")
    function = load("quack.linear_cross_entropy").chunked_linear_cross_entropy
    return lambda: function(case.hidden, case.weight, case.targets, use_scaled_exp=scaled_exp)


QUACK = Provider(
    "QuACK", "quack-kernels", losses={"cross_entropy": partial(_loss, scaled_exp=False)}, differs="cross-entropy only; bf16 logits"
)
QUACK_SCALED = Provider(
    "QuACK scaled-exp", "quack-kernels", losses={"cross_entropy": partial(_loss, scaled_exp=True)}, differs="cross-entropy only; SM90"
)
