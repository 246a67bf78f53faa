"""The policy that the run began with: what a KL penalty pulls towards, and what a method may compare the present one with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from aer_train import dist
from aer_train.config.tree import ModelConfig
from aer_train.model.load import load_policy
from aer_train.model.lora import adapters_off, has_adapters
from aer_train.model.policy import Policy

BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


@dataclass(frozen=True)
class Reference:
    """The first policy, to score samples with."""

    policy: Policy
    """A second model, or that which is trained, if it has adapters to turn off."""

    @contextmanager
    def scoring(self) -> Iterator[Policy]:
        """Context in which the yielded policy is the first one, for passes without a graph."""
        with adapters_off(self.policy.model):
            yield self.policy


def load_reference(config: ModelConfig, policy: Policy) -> Reference:
    """Return the policy without its adapters, or load it a second time, frozen. All processes must call it together.

    Args:
        config: of the first policy.
        policy: in any later state.
    Raises:
        ValueError - as `load_policy`.
    """
    if has_adapters(policy.model):
        return Reference(policy)
    first = load_policy(config, policy.device)
    first.model.requires_grad_(False)
    return Reference(first)


def frozen_digest(policy: Policy, reference: Reference | None) -> str | None:
    """Return a digest of what a run needs and its checkpoints do not hold: the model under adapters, or the reference."""
    if has_adapters(policy.model):
        return weights_digest(parameter for parameter in policy.model.parameters() if not parameter.requires_grad)
    return None if reference is None else weights_digest(reference.policy.model.parameters())


def weights_digest(parameters: Iterable[nn.Parameter]) -> str:
    """Return a digest of float32 or bfloat16 parameters, the same on any device and for any number of processes, who must call it together.

    It is that of the sum of each one's bits, read as whole numbers: exact in any order.
    """
    local = [p.to_local() if hasattr(p, "to_local") else p for p in parameters]
    sums = [int(x.detach().contiguous().view(BITS[x.dtype]).sum(dtype=torch.int64)) for x in local]
    whole = [sum(parts) for parts in zip(*dist.all_gather(sums), strict=True)]
    return hashlib.blake2b(repr(whole).encode(), digest_size=16).hexdigest()
