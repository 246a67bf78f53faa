"""Apple's cut-cross-entropy, with and without the filter that skips small gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from benchmarks.providers.base import Provider, load
from benchmarks.workloads import Case


def _tokens(case: Case, *, filter_eps: str | None) -> Callable[[], tuple[Tensor, None]]:
    function = load("cut_cross_entropy").linear_cross_entropy
    options = {"impl": "cce", "filter_eps": filter_eps} if case.hidden.device.type == "cuda" else {"impl": "torch_compile"}
    return lambda: (-function(case.hidden, case.weight, case.targets, reduction="none", **options), None)


CCE = Provider(
    "cut-cross-entropy",
    "cut-cross-entropy",
    partial(_tokens, filter_eps="high"),
    differs="no entropy; skips tiles of small gradients (GPU)",
)
CCE_UNFILTERED = Provider(
    "cut-cross-entropy, no filter",
    "cut-cross-entropy",
    partial(_tokens, filter_eps=None),
    differs="no entropy; on a CPU the same as with a filter",
)
