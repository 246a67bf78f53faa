"""Nobody is timed who computes something else: every provider is first checked against float64 on a small case of the same kind."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.providers import Provider, prepare
from benchmarks.providers.eager import EAGER
from benchmarks.workloads import Case, Workload, make_case

SHAPE = {"num_tokens": 256, "vocab_size": 2048, "hidden_size": 256}
"""A multiple of what any peer asks for."""

BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest accepted error: absolute in nats for log-probs and entropy, relative for losses and gradients. Wide: peers differ in precision,
and the errors are in the table."""


class GateError(Exception):
    """A provider computes something else."""


def check(provider: Provider, workload: Workload, device: torch.device) -> dict[str, float]:
    """Errors of a provider against float64 on the same rounded inputs; raises GateError beyond the bounds."""
    if provider.work is not None:
        return {}
    case = make_case(replace(workload, **SHAPE), device)
    found = _results(prepare(provider, case)(), case)
    exact = case.double()
    truth = _results(prepare(EAGER, exact)(), exact)
    errors = {name: _error(name, value, truth[name]) for name, value in found.items()}
    bound = BOUNDS[workload.dtype]
    bad = {k: v for k, v in errors.items() if not v <= bound}
    if bad:
        raise GateError(", ".join(f"error of {k} is {v:.2g}, more than {bound:g}" for k, v in bad.items()))
    return errors


def _results(outputs: dict[str, Tensor], case: Case) -> dict[str, Tensor]:
    gradients = {f"grad_{name}": leaf.grad for name, leaf in case.leaves.items()}
    missing = [name for name, value in gradients.items() if value is None]
    if missing:
        raise GateError(f"no {' and no '.join(missing)}")
    return outputs | {k: v for k, v in gradients.items() if v is not None}


def _error(name: str, got: Tensor, truth: Tensor) -> float:
    difference = got.double() - truth.double()
    if name in ("logprobs", "entropy"):
        return float(difference.abs().max())
    return float(difference.norm() / truth.double().norm().clamp(min=1e-12))
