"""What a user writes without a library: full logits, autograd; and the same through torch.compile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.providers.base import Provider
from benchmarks.workloads import Case


def _statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
    return logp.gather(1, targets.unsqueeze(1)).squeeze(1), -(logp.exp() * logp).sum(1)


def _from_head(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return _statistics(hidden @ weight.T, targets)


def eager_tokens(case: Case) -> Callable[[], tuple[Tensor, Tensor]]:
    """Log-probs and entropy through full logits."""
    if case.logits is not None:
        return lambda: _statistics(case.logits, case.targets)
    return lambda: _from_head(case.hidden, case.weight, case.targets)


def _compiled_tokens(case: Case) -> Callable[[], tuple[Tensor, Tensor]]:
    if case.logits is not None:
        statistics = torch.compile(_statistics, dynamic=False)
        return lambda: statistics(case.logits, case.targets)
    from_head = torch.compile(_from_head, dynamic=False)
    return lambda: from_head(case.hidden, case.weight, case.targets)


EAGER = Provider("eager", None, eager_tokens, True, differs="logits in the dtype of the model; all N*V of them are held")
COMPILED = Provider("torch.compile", None, _compiled_tokens, True, differs="as eager")
