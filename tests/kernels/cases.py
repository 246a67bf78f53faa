"""What the kernel tests share: eager PyTorch as the measuring stick, and three runs (truth, eager, fused) of one case."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from aer_kernels import fused_logprobs
from aer_kernels.reference import temper, token_statistics
from aer_kernels.testing import HeadInputs, assert_within_budget

FUSED = ["torch", pytest.param("triton", marks=pytest.mark.slow)]
"""Implementations. Triton's runs in the interpreter here, a program at a time."""
GRADS = ("hidden", "weight", "bias")


def eager_logprobs(inputs: HeadInputs, *, temperature=1.0, softcap=None):
    """What a user writes without this library: logits in the dtype of the model, statistics in fp32."""
    raw = torch.nn.functional.linear(inputs.hidden, inputs.weight, inputs.bias).float()
    return token_statistics(temper(raw, None, temperature, softcap), inputs.targets.clamp(min=0))


def gradients(run: Callable, inputs: HeadInputs, upstream: tuple, names=GRADS):
    """Outputs of run(inputs) and the gradients of sum(upstream * outputs) for the named inputs."""
    leaves = inputs.requires_grad(*names)
    outputs = run(leaves)
    total = sum((g.to(o.dtype) * o).sum() for g, o in zip(upstream, outputs, strict=False) if g is not None)
    wanted = [getattr(leaves, n) for n in names if getattr(leaves, n) is not None]
    return outputs, torch.autograd.grad(total, wanted)


def check_logprobs(inputs: HeadInputs, impl: str, *, keep=None, upstream=None, **options) -> None:
    """fused_logprobs on `impl` against float64 truth and eager: outputs and every gradient; ignored rows exactly 0."""
    num = inputs.targets.numel()
    keep = torch.ones(num, dtype=torch.bool, device=inputs.targets.device) if keep is None else keep
    generator = torch.Generator().manual_seed(1)
    random = [torch.randn(num, generator=generator, dtype=torch.float64).to(inputs.targets.device) for _ in range(2)]
    upstream = random if upstream is None else upstream
    masked = tuple(None if g is None else g * keep for g in upstream)
    shared = {k: options[k] for k in ("temperature", "softcap") if k in options}
    truth_options = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items() if k != "memory_budget"}

    truth = gradients(
        lambda x: fused_logprobs(x.hidden, x.weight, x.targets, bias=x.bias, impl="reference", **truth_options), inputs.double(), masked
    )
    eager = gradients(lambda x: [torch.where(keep, o, 0.0) for o in eager_logprobs(x, **shared)], inputs, masked)
    fused = gradients(lambda x: fused_logprobs(x.hidden, x.weight, x.targets, bias=x.bias, impl=impl, **options), inputs, upstream)
    for name, got, true, stick in zip(("logprobs", "entropy", "logsumexp"), fused[0], truth[0], eager[0], strict=True):
        assert got.dtype == torch.float32
        assert torch.all(got[~keep] == 0), f"{name} of ignored tokens"
        assert_within_budget(name, got, true, stick)
    for name, got, true, stick in zip(GRADS, fused[1], truth[1], eager[1], strict=False):
        assert_within_budget(f"grad_{name}", got, true, stick)
    assert torch.all(fused[1][0][~keep] == 0), "grad_hidden of ignored tokens"
