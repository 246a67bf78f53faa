"""Input factories and error budgets, shared by the tests and the benchmarks.

A result passes when it is no worse than twice what plain PyTorch in the same dtype does, both measured against float64 on the same inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadInputs:
    """Hidden states, head and targets; `double` gives the same values in float64 for the truth."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    bias: Tensor | None = None

    def double(self) -> HeadInputs:
        """The same (already rounded) values in float64, detached."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return HeadInputs(**{k: v if v is None or not v.is_floating_point() else v.detach().double() for k, v in values.items()})

    def requires_grad(self, *names: str) -> HeadInputs:
        """Fresh leaves, of which the named ones require gradients."""
        chosen = {n: getattr(self, n).detach().clone().requires_grad_() for n in names if getattr(self, n) is not None}
        return replace(self, **chosen)


def head_inputs(
    num_tokens: int,
    vocab_size: int,
    hidden_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
    peak: float = 9.0,
    bias: bool = False,
) -> HeadInputs:
    """Realistic, peaked logits: most tokens are nearly certain, some are open, as for a language model (median entropy about 0.3 nats).

    Unit-normal logits plus `peak` nats towards the target for four tokens in five. peak=0 is an untrained head; log V + 3 gives the median
    of 0.3 nats at any V. Made on the device from the seed: a GPU and a CPU make different ones.
    """
    made: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(seed), "device": device}
    weight = torch.randn(vocab_size, hidden_size, **made) / hidden_size**0.5
    hidden = torch.randn(num_tokens, hidden_size, **made)
    targets = torch.randint(vocab_size, (num_tokens,), **made)
    sure = torch.rand(num_tokens, **made) < 0.8
    direction = weight[targets]
    scale = peak * torch.rand(num_tokens, **made).mul_(0.6).add_(0.9) / direction.square().sum(1).clamp(min=1e-6)
    hidden += direction * (scale * sure).unsqueeze(1)
    offset = torch.randn(vocab_size, **made).to(dtype) if bias else None
    return HeadInputs(hidden.to(dtype), weight.to(dtype), targets, offset)


def error(got: Tensor, truth: Tensor) -> tuple[float, float]:
    """Largest and root-mean-square absolute error against a float64 truth; nan where either is."""
    if got.shape != truth.shape:
        raise AssertionError(f"shape {tuple(got.shape)} instead of {tuple(truth.shape)}")
    difference = got.detach().double().cpu() - truth.detach().double().cpu()
    if difference.numel() == 0:
        return 0.0, 0.0
    return difference.abs().max().item(), difference.square().mean().sqrt().item()


def assert_within_budget(name: str, got: Tensor, truth: Tensor, eager: Tensor, *, factor: float = 2.0, ulps: float = 4.0) -> None:
    """Largest and RMS error at most `factor` times eager PyTorch's, plus a few roundings of the largest true value in the dtype of `got`.

    The floor is there for quantities that eager happens to hit exactly; it is scaled by the eager dtype only through `got`.
    """
    worst, rms = error(got, truth)
    eager_worst, eager_rms = error(eager, truth)
    unit = torch.finfo(got.dtype).eps * max(truth.abs().max().item() if truth.numel() else 0.0, torch.finfo(got.dtype).tiny)
    for kind, ours, theirs in (("largest", worst, eager_worst), ("rms", rms, eager_rms)):
        bound = factor * theirs + ulps * unit
        if not ours <= bound:
            raise AssertionError(f"{name}: {kind} error {ours:.3g} exceeds {bound:.3g} (eager {theirs:.3g}, one rounding {unit:.3g})")
