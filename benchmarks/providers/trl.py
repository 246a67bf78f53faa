"""TRL's own head: log-probs and entropy of its GRPOTrainer and its other trainers, in chunks of tokens and vocabulary."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from benchmarks.providers.base import Provider, load
from benchmarks.workloads import Case

COLUMNS = 32_768
"""As `trl.trainer.utils` asks for."""


def _tokens(case: Case) -> Callable[[], tuple[Tensor, Tensor]]:
    function, outputs = load("trl.kernels").ChunkedLogProbFunction, ("log_probs", "entropy")
    return lambda: function.apply(case.hidden, case.weight, None, case.targets, 1.0, COLUMNS, None, 1.0, outputs)[:2]


TRL = Provider("TRL", "trl", _tokens, True, differs="loss in plain PyTorch on its log-probs; logits in the input's dtype")
