"""The floor: the matrix products of the work and nothing else, in memory that exists already."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.providers.base import Inapplicable, Provider, Run
from benchmarks.workloads import FORWARD_ONLY, GIVEN_LOGITS, Case

CHUNK = {"cpu": 512, "cuda": 8192}
"""Rows at a time: few enough to bound memory on a CPU, all of them where products are fastest on a GPU."""


@torch.no_grad()
def _work(case: Case) -> Run:
    if case.workload.kind in GIVEN_LOGITS:
        raise Inapplicable("there is no product")
    hidden, weight = case.hidden.detach(), case.weight.detach()
    rows = min(CHUNK[hidden.device.type], len(hidden))
    block = hidden.new_empty(rows, len(weight))
    grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
    recompute = case.workload.kind == "logprobs"
    useful = round(case.workload.useful * len(hidden))

    def run() -> dict[str, Tensor]:
        with torch.no_grad():
            for start in range(0, len(hidden), rows):
                x = hidden[start : start + rows]
                d = torch.mm(x, weight.T, out=block[: len(x)])
                if case.workload.kind in FORWARD_ONLY or start >= useful:
                    continue
                if recompute:
                    torch.mm(x, weight.T, out=d)
                live = min(len(x), useful - start)
                torch.mm(d[:live], weight, out=grad_hidden[start : start + live])
                grad_weight.addmm_(d[:live].T, x[:live])
        return {}

    return run


GEMMS = Provider("bare products", work=_work, differs="products alone: no softmax, no loss; gradients are meaningless")
