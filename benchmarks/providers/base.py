"""What a provider is, and how a kind of work is made of what it offers."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aer_kernels.reference import policy_surrogate
from benchmarks.workloads import FORWARD_ONLY, GIVEN_LOGITS, Case

Run = Callable[[], dict[str, Tensor]]
"""Does the work once, gradients into the leaves of the case; returns what it computed, detached."""


class Unavailable(Exception):
    """Why a provider does not do a kind of work here."""


class Inapplicable(Unavailable):
    """It does not do this kind of work anywhere."""


@dataclass(frozen=True)
class Provider:
    """One implementation. `tokens` gives log-probs and entropy from a head, from which losses are made; `losses` are fused ones."""

    name: str
    package: str | None = None
    """Distribution whose version is reported; None: PyTorch's."""
    tokens: Callable[[Case], Callable[[], tuple[Tensor, Tensor | None]]] | None = None
    entropy_gradient: bool = False
    """Whether the entropy of `tokens` can be differentiated."""
    given_logits: bool = False
    """Whether `tokens` also works on given logits."""
    losses: dict[str, Callable[[Case], Callable[[], Tensor]]] = field(default_factory=dict)
    """Kind of work -> loss."""
    differs: str = ""
    """What it does not compute, or computes differently."""
    work: Callable[[Case], Run] | None = None
    """Instead of all of the above: does the work itself, and is not checked."""

    def version(self) -> str:
        """Installed version."""
        if self.package is None:
            return torch.__version__
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            raise Unavailable(f"{self.package} is not installed") from None


def prepare(provider: Provider, case: Case) -> Run:
    """The work of a case, by a provider. Raises Unavailable."""
    provider.version()
    if provider.work is not None:
        return provider.work(case)
    kind = case.workload.kind
    if kind in GIVEN_LOGITS and not provider.given_logits:
        raise Inapplicable("it takes a head, not logits")
    if kind in provider.losses:
        return _differentiated(provider.losses[kind](case), case)
    if provider.tokens is None:
        raise Inapplicable(f"does not do {kind}")
    if kind in ("policy", "policy_half", "logprobs") and not provider.entropy_gradient:
        raise Inapplicable("its entropy has no gradient")
    return _from_tokens(provider.tokens(case), case)


def _from_tokens(tokens: Callable[[], tuple[Tensor, Tensor | None]], case: Case) -> Run:
    kind = case.workload.kind
    if kind in FORWARD_ONLY:

        def score() -> dict[str, Tensor]:
            with torch.no_grad():
                logprobs, entropy = tokens()
            return {"logprobs": logprobs} if entropy is None else {"logprobs": logprobs, "entropy": entropy}

        return score
    if kind in ("logprobs", "from_logits"):

        def differentiate() -> dict[str, Tensor]:
            logprobs, entropy = tokens()
            assert entropy is not None, "asked only of those with an entropy"
            pull(case, [logprobs, entropy], list(case.upstream))
            return {"logprobs": logprobs.detach(), "entropy": entropy.detach()}

        return differentiate
    return _differentiated(lambda: loss_of(case, *tokens()), case)


def loss_of(case: Case, logprobs: Tensor, entropy: Tensor | None) -> Tensor:
    """The loss of the workload from per-token tensors, in plain PyTorch."""
    if case.workload.kind == "cross_entropy":
        return -logprobs.float().mean()
    surrogate = policy_surrogate(logprobs, case.old_logprobs, case.advantages, "ppo", 0.2, 0.2, None)
    if case.workload.kind == "policy_no_entropy":
        return -surrogate.mean()
    assert entropy is not None, "asked only of those with an entropy"
    return (-surrogate - case.entropy_coef * entropy).mean()


def _differentiated(loss: Callable[[], Tensor], case: Case) -> Run:
    def run() -> dict[str, Tensor]:
        value = loss()
        pull(case, [value], [torch.ones_like(value)])
        return {"loss": value.detach()}

    return run


def pull(case: Case, outputs: list[Tensor], upstream: list[Tensor]) -> None:
    """Backward pass into fresh gradients."""
    for leaf in case.leaves.values():
        leaf.grad = None
    torch.autograd.backward(outputs, [g.to(o.dtype) for g, o in zip(upstream, outputs, strict=True)])


def need_gpu(case: Case, what: str) -> None:
    """For providers whose kernels only run there."""
    if case.hidden.device.type != "cuda":
        raise Unavailable(f"{what} needs a GPU")


def load(module: str) -> Any:
    """Import a peer's module, or say why that does not work."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a peer may fail to import in any way
        raise Unavailable(
            f"{module} does not import: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
