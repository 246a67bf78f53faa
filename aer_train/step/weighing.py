"""What a method is given about a step, and what it makes of it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch

from aer_kernels.methods import Method
from aer_kernels.methods.asking import ask_bonus
from aer_kernels.methods.seam import also_needs, kept_of
from aer_train.clock import Clock
from aer_train.config.tree import TrainConfig
from aer_train.model import Policy, Reference
from aer_train.step.credit import assign_credit
from aer_train.step.objective import Floor, Statistic, sampling_floor
from aer_train.step.scores import Scores, prompt_logprobs, score, statistics
from aer_train.step.tokens import Layout, Weighed, advantages_of, token_batch, weigh
from aer_train.types import Batch

MEASURED = frozenset({"kept_entropy", "mean_surprise"})
"""What a method may need of the pass that measures entropy."""


def weigh_step(
    policy: Policy, method: Method, batch: Batch, config: TrainConfig, step: int, clock: Clock, reference: Reference | None = None
) -> tuple[Weighed, Scores | None]:
    """Return what the method makes of each token, and the scores of all samples where it needs them for that.

    Args:
        reference: the first policy, for a KL penalty or the method; None where neither needs it.
    """
    needs, layout = also_needs(method), Layout.of(batch)
    decode = cache(lambda token: policy.tokenizer.decode([token])) if "text" in needs else None
    tokens = token_batch(batch, (config.run.seed, "method", step), decode)
    scores = None
    with clock.part("old_logprobs"):
        if method.needs_entropy or needs & MEASURED:
            floor, kept = sampling_floor(config), kept_of(method)
            scores = score(policy, batch.samples, layout.rows, config, floor, kept, "mean_surprise" in needs)
            measured: dict[str, Any] = {name: torch.from_numpy(values) for name, values in scores.flat(layout).items()}
            tokens = replace(tokens, **measured)
        if "prompt_logprobs" in needs:
            tokens = replace(tokens, prompt_logprobs=prompt_logprobs(policy, batch.groups, config))
        statistic = statistic_of(method)
        if statistic is not None:
            tokens = replace(tokens, statistic=statistics(policy, batch.samples, layout.rows, statistic, config))
    first = None if reference is None else _by_reference(reference, batch, layout, config, clock)
    if first is not None and "reference_entropy" in needs:
        tokens = replace(tokens, reference_entropy=torch.from_numpy(first["entropy"]))
    bonus = ask_bonus(method, tokens)
    if bonus is not None:
        batch = assign_credit(batch.groups, config, bonus)
        tokens = replace(tokens, advantages=advantages_of(batch, tokens.response))
    weighed = weigh(batch, tokens, method)
    if first is not None and config.objective.kl_coef:
        weighed = replace(weighed, reference=first["logprobs"])
    return weighed, scores


def _by_reference(reference: Reference, batch: Batch, layout: Layout, config: TrainConfig, clock: Clock) -> dict[str, np.ndarray]:
    """What the first policy says of all loss tokens, in one pass: log-probs, and entropies over what its own rollouts would draw from."""
    drawn = sampling_floor(config)
    floor = None if drawn is None else Floor(drawn.kept, "entropy")  # tokens that it would not have drawn do not count
    with clock.part("old_logprobs"), reference.scoring() as start:
        return score(start, batch.samples, layout.rows, config, floor).flat(layout)


def statistic_of(method: Method) -> Statistic | None:
    """Return what a method reads in hidden states, if anything."""
    found: Statistic | None = getattr(method, "statistic") if "statistic" in also_needs(method) else None  # noqa: B009
    return found


def weigh_again(policy: Policy, method: Method, weighed: Weighed, rows: list[int], config: TrainConfig) -> Weighed:
    """Return what the method makes of the tokens of these samples now that the policy has moved."""
    layout, tokens = weighed.layout, weighed.tokens
    now = score(policy, weighed.samples, rows, config, sampling_floor(config)).flat(layout)["entropy"]
    assert tokens.entropy is not None, "a method that compares entropies needs the first ones"
    entropy = tokens.entropy.clone()
    for row in rows:
        entropy[layout.slices[row]] = torch.from_numpy(now[layout.slices[row]])
    return replace(weigh(weighed.batch, replace(tokens, current_entropy=entropy), method), reference=weighed.reference)
