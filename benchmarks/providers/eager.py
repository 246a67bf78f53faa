"""What a user writes without a library: full logits, autograd; and the same through torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

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


@lru_cache
def _compiled(function: Callable[..., tuple[Tensor, Tensor]], *shapes: object) -> Callable[..., tuple[Tensor, Tensor]]:
    """Compiled once a shape, by a compiler that has seen no other: else its limit of recompilations is met and it gives up silently."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def _compiled_tokens(case: Case) -> Callable[[], tuple[Tensor, Tensor]]:
    if case.logits is not None:
        statistics = _compiled(_statistics, case.logits.shape, case.logits.dtype)
        return lambda: statistics(case.logits, case.targets)
    from_head = _compiled(_from_head, case.hidden.shape, case.weight.shape, case.hidden.dtype)
    return lambda: from_head(case.hidden, case.weight, case.targets)


EAGER = Provider("eager", None, eager_tokens, True, True, differs="logits in the dtype of the model; all N*V of them are held")
COMPILED = Provider("torch.compile", None, _compiled_tokens, True, True, differs="as eager")
