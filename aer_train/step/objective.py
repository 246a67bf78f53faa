"""What turns the log-probs of an update into its loss: the objective with everything that the whole update fixes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from aer_kernels import KeptSet
from aer_kernels.api import FloorScope
from aer_kernels.methods import Method, TokenTerms
from aer_kernels.methods.seam import kept_of
from aer_train.config.tree import Mismatch, ObjectiveConfig, TrainConfig
from aer_train.step.mismatch import mismatch_kind
from aer_train.types import Sample

Statistic = Callable[[Tensor], Tensor]
"""From the last hidden states (T, D) of a response's T tokens to a differentiable number."""


@dataclass(frozen=True)
class Floor:
    """Which tokens of each distribution count."""

    kept: KeptSet
    scope: FloorScope
    """all: rollouts draw from these alone, and log-probs and entropies are theirs. entropy: only entropies are over them."""


@dataclass(frozen=True)
class Objective:
    """The same for every micro-batch of an update."""

    config: ObjectiveConfig
    """With the bounds of the ratio that the method asks for."""
    denominator: float
    """What the policy term is divided by. token_mean: loss tokens. sequence_mean, GSPO: responses. constant: responses * max_new_tokens."""
    entropy_denominator: float
    """Loss tokens, whatever the aggregation: an entropy coefficient always means the same."""
    entropy_scale: float = 1.0
    """Factor of the entropy coefficients of all tokens."""
    temperature: float = 1.0
    """> 0, of the distribution that was sampled and is trained."""
    mismatch: Mismatch = "off"
    """Which importance weights, as `mismatch_kind` found."""
    memory_budget: int | None = None
    """Bytes of workspace for the fused loss; None lets its planner choose."""
    responses: float = 1.0
    """Responses of the update: what the statistics of hidden states are divided by."""
    statistic: Statistic | None = None
    """What the method reads in the hidden states of a response."""
    floor: Floor | None = None
    """None: all tokens count."""

    @property
    def by_response(self) -> bool:
        """Whether the policy term is a mean over responses."""
        return self.config.kind == "gspo" or self.config.aggregation == "sequence_mean"


def make_objective(config: TrainConfig, terms: TokenTerms, samples: Sequence[Sample]) -> Objective:
    """Return the objective of an update on these samples."""
    objective, memory = config.objective, config.optim.loss_memory_mib
    tokens, responses = float(sum(len(sample.tokens) for sample in samples)), float(len(samples))
    by_aggregation = {"token_mean": tokens, "sequence_mean": responses, "constant": responses * config.rollout.max_new_tokens}
    return Objective(
        with_bounds(objective, terms),
        responses if objective.kind == "gspo" else by_aggregation[objective.aggregation],
        tokens,
        terms.entropy_scale,
        config.rollout.temperature,
        mismatch_kind(config),
        None if memory is None else memory << 20,
        responses,
    )


def sampling_floor(config: TrainConfig) -> Floor | None:
    """Return what rollouts draw from. None: all tokens."""
    return None if config.rollout.top_p == 1 else Floor(KeptSet(top_p=config.rollout.top_p), "all")


def loss_floor(config: TrainConfig, method: Method | None) -> Floor | None:
    """Return what the loss is over: what rollouts draw from or, with all of that, the method's own set for its entropies."""
    kept = None if method is None else kept_of(method)
    return sampling_floor(config) if kept is None else Floor(kept, "entropy")


def with_bounds(config: ObjectiveConfig, terms: TokenTerms) -> ObjectiveConfig:
    """Return the configuration with the bounds of the ratio that the method moves."""
    bounds: dict[str, Any] = {"clip_low": terms.clip_low, "clip_high": terms.clip_high, "dual_clip": terms.dual_clip}
    moved = {name: bound for name, bound in bounds.items() if bound is not None}
    return replace(config, **moved) if moved else config
