"""This library."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aer_kernels import fused_logprobs, fused_policy_loss, logprobs_from_logits
from benchmarks.providers.base import Provider, Unavailable
from benchmarks.workloads import GIVEN_LOGITS, Case


def _tokens(impl: str) -> Callable[[Case], Callable[[], tuple[Tensor, Tensor | None]]]:
    def make(case: Case) -> Callable[[], tuple[Tensor, Tensor | None]]:
        if impl == "torch" and case.hidden.device.type == "cpu":
            raise Unavailable("the same as aer_kernels on a CPU")
        if case.workload.kind in GIVEN_LOGITS:
            return lambda: logprobs_from_logits(case.logits, case.targets, impl=impl)[:2]
        return lambda: fused_logprobs(case.hidden, case.weight, case.targets, impl=impl, debug_checks=False)[:2]

    return make


def _policy(impl: str) -> Callable[[Case], Callable[[], Tensor]]:
    def make(case: Case) -> Callable[[], Tensor]:
        if impl == "torch" and case.hidden.device.type == "cpu":
            raise Unavailable("the same as aer_kernels on a CPU")
        ce = case.workload.kind == "cross_entropy"
        if ce:
            tokens = {"advantages": torch.ones_like(case.advantages)}
        else:
            tokens = {"advantages": case.advantages, "old_logprobs": case.old_logprobs, "entropy_coef": case.entropy_coef}
        objective = "cispo" if ce else "ppo"  # at ratio 1 and advantage 1 its value is -logprobs: cross-entropy
        return lambda: (
            fused_policy_loss(case.hidden, case.weight, case.targets, objective=objective, impl=impl, debug_checks=False, **tokens).loss
        )

    return make


def _make(name: str, impl: str) -> Provider:
    losses = {kind: _policy(impl) for kind in ("policy", "policy_half", "policy_no_entropy", "cross_entropy")}
    return Provider(name, "aer-rl", _tokens(impl), True, True, losses, "also returns per-token log-probs, entropy and metrics")


OURS = _make("aer_kernels", "auto")
OURS_TORCH = _make("aer_kernels (impl=torch)", "torch")
