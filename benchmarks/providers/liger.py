"""Liger-Kernel: fused linear GRPO, fused linear scaled cross-entropy (log-probs with entropy), fused linear cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from benchmarks.providers.base import Provider, load, need_gpu
from benchmarks.workloads import Case


@lru_cache
def _fresh_compiler(*shapes: object) -> None:
    """Once a shape: compiled for a second shape in one process, it fails (torch 2.11: "sources must not be empty for symbol")."""
    torch._dynamo.reset()


def _grpo(case: Case) -> Callable[[], Tensor]:
    _fresh_compiler(case.hidden.shape, case.weight.shape, case.hidden.dtype)
    make = load("liger_kernel.chunked_loss").LigerFusedLinearGRPOLoss
    loss = make(beta=0.0, use_ref_model=False, loss_type="bnpo", epsilon_low=0.2, epsilon_high=0.2, compiled=True)
    shape = (-1, case.length)
    targets, old = case.targets.view(shape), case.old_logprobs.view(shape)
    mask = torch.ones_like(targets)
    advantages = case.advantages.view(shape)[:, 0].contiguous()

    def run() -> Tensor:
        hidden = case.hidden.view(*targets.shape, -1)
        return loss(hidden, case.weight, targets, mask, advantages, old_per_token_logps=old)[0]

    return run


def _scaled(case: Case) -> Callable[[], tuple[Tensor, Tensor]]:
    function = load("liger_kernel.ops.fused_linear_scaled_cross_entropy").LigerFusedLinearScaledCrossEntropyFunction

    def run() -> tuple[Tensor, Tensor]:
        nll, entropy = function.apply(case.hidden, case.weight, case.targets, 1.0, -100, 1, True)
        return -nll, entropy

    return run


def _cross_entropy(case: Case) -> Callable[[], Tensor]:
    need_gpu(case, "its Triton kernel")
    make = load("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss
    loss = make(accum_dtype=torch.float32)
    return lambda: loss(case.weight, case.hidden, case.targets)


LIGER_GRPO = Provider(
    "Liger fused linear GRPO",
    "liger-kernel",
    losses={"policy_no_entropy": _grpo},
    differs="no entropy, no per-token output; a loop over sequences",
)
LIGER_SCALED_CE = Provider(
    "Liger scaled cross-entropy",
    "liger-kernel",
    _scaled,
    True,
    differs="loss in plain PyTorch on its log-probs; entropy in the input's dtype",
)
LIGER_CE = Provider("Liger fused linear CE", "liger-kernel", losses={"cross_entropy": _cross_entropy}, differs="no entropy, no policy loss")
