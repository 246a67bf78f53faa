"""What is measured: kinds of work, shapes, and inputs that look like those of a language model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aer_kernels.testing import head_inputs

KINDS = {
    "policy": "policy loss with an entropy bonus, forward and backward",
    "policy_half": "the same; half of the tokens have neither advantage nor bonus",
    "policy_no_entropy": "policy loss without a bonus, forward and backward",
    "logprobs": "log-probs and entropy with gradients, from random upstream gradients",
    "score": "log-probs and entropy, forward only",
    "cross_entropy": "mean cross-entropy, forward and backward",
    "from_logits": "log-probs and entropy of given logits, forward and backward",
}
FORWARD_ONLY = ("score",)
GIVEN_LOGITS = ("from_logits",)
TRAINED, EARLY = 3.0, 0.0
"""Peak of `head_inputs` above log V, nats: a trained policy (median entropy about 0.3 nats), and one at the start of training (about 4)."""


@dataclass(frozen=True)
class Workload:
    """One kind of work at one shape."""

    kind: str
    num_tokens: int
    vocab_size: int
    hidden_size: int
    dtype: torch.dtype
    peak: float = TRAINED
    sweep: str = "main"
    """The plot that it is a point of, or main."""
    share: float = 1.0
    """Share of the tokens that have an advantage (and a bonus)."""
    rounds: int = 5
    only: tuple[str, ...] = ()
    """Providers, if not all."""
    without: tuple[str, ...] = ()
    """Providers that are left out: those that compile for longer than they tell something new."""

    @property
    def label(self) -> str:
        """One readable line."""
        shape = f"N={self.num_tokens} V={self.vocab_size} D={self.hidden_size} {str(self.dtype).removeprefix('torch.')}"
        return f"{self.kind} {shape}{'' if self.peak == TRAINED else ' early'}{'' if self.share == 1 else f' share={self.share}'}"

    @property
    def flops(self) -> int:
        """Matrix-product FLOPs that the work needs: 2 N*V*D forward, 4 for the rows with a gradient, 2 more to recompute their logits."""
        unit = self.num_tokens * self.vocab_size * self.hidden_size
        if self.kind in GIVEN_LOGITS:
            return 0
        if self.kind in FORWARD_ONLY:
            return 2 * unit
        return int(unit * (2 + (6 if self.kind == "logprobs" else 4) * self.useful))

    @property
    def useful(self) -> float:
        """Share of the tokens with a gradient."""
        return 0.5 if self.kind == "policy_half" else self.share


@dataclass
class Case:
    """Inputs of a workload; hidden and weight (or logits) are leaves with gradients unless the work is forward only."""

    workload: Workload
    hidden: Tensor
    weight: Tensor
    targets: Tensor
    advantages: Tensor
    """(N,), one value a sequence of `length` tokens."""
    old_logprobs: Tensor
    entropy_coef: Tensor
    """(N,)"""
    upstream: tuple[Tensor, Tensor]
    length: int
    logits: Tensor | None = None

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What has a gradient."""
        if self.workload.kind in FORWARD_ONLY:
            return {}
        return {"logits": self.logits} if self.logits is not None else {"hidden": self.hidden, "weight": self.weight}

    def double(self) -> Case:
        """The same values in float64, with leaves of their own."""
        made = replace(self)
        for name in ("hidden", "weight", "advantages", "old_logprobs", "entropy_coef", "logits"):
            value = getattr(self, name)
            setattr(made, name, None if value is None else value.detach().double().requires_grad_(value.requires_grad))
        made.upstream = (self.upstream[0].double(), self.upstream[1].double())
        return made


def make_case(workload: Workload, device: torch.device, seed: int = 0) -> Case:
    """Inputs of a workload from a seed, on the device."""
    n, generator = workload.num_tokens, torch.Generator().manual_seed(seed)
    x = head_inputs(
        n,
        workload.vocab_size,
        workload.hidden_size,
        dtype=workload.dtype,
        device=device,
        seed=seed,
        peak=math.log(workload.vocab_size) + workload.peak,
    )
    length = next(size for size in range(min(512, n), 0, -1) if n % size == 0)
    per_sequence = torch.randn(n // length, generator=generator)
    bonus = 0.01 * (0.5 + torch.rand(n // length, generator=generator))
    silent = torch.arange(n // length) >= round(workload.useful * (n // length))
    if n // length == 1:  # one sequence only: silence tokens instead
        silent, per_sequence, bonus = torch.arange(n) >= workload.useful * n, per_sequence.expand(n), bonus.expand(n)
        expand = lambda t: t.masked_fill(silent, 0.0)  # noqa: E731
    else:
        expand = lambda t: t.masked_fill(silent, 0.0).repeat_interleave(length)  # noqa: E731
    grads = workload.kind not in FORWARD_ONLY
    hidden, weight = (t.requires_grad_(grads and workload.kind not in GIVEN_LOGITS) for t in (x.hidden, x.weight))
    logits = (hidden @ weight.T).detach().requires_grad_() if workload.kind in GIVEN_LOGITS else None
    coefficient = 0.0 if workload.kind == "policy_no_entropy" else 1.0
    return Case(
        workload,
        hidden,
        weight,
        x.targets,
        expand(per_sequence).to(device),
        (_logprobs(x.hidden, x.weight, x.targets) + 0.05 * torch.randn(n, generator=generator).to(device)).float(),
        (coefficient * expand(bonus)).to(device),
        (torch.randn(n, generator=generator).to(device), torch.randn(n, generator=generator).to(device)),
        length,
        logits,
    )


@torch.no_grad()
def _logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    parts = zip(hidden.split(1024), targets.split(1024), strict=True)
    return torch.cat([torch.log_softmax((h @ weight.T).float(), -1).gather(1, t[:, None])[:, 0] for h, t in parts])


@torch.no_grad()
def median_entropy(case: Case) -> float:
    """Median entropy of at most 1024 tokens, nats."""
    logp = torch.log_softmax((case.hidden[:1024] @ case.weight.T).float(), -1)
    return float(-(logp.exp() * logp).sum(1).median())
