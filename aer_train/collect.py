"""The samples of one step with their verdicts: generation and verification side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import NamedTuple

from aer_kernels.methods import Method
from aer_kernels.methods.seam import needs_pass
from aer_train import dist
from aer_train.clock import Clock
from aer_train.config.tree import TrainConfig
from aer_train.data.difficulty import Difficulty
from aer_train.rollout.protocol import GroupSize, Rollout, sizes_of
from aer_train.step.credit import assign_credit
from aer_train.step.tokens import token_batch, weigh
from aer_train.types import Group, Prompt, Sample, Sampling, Verdict
from aer_train.verify.rewards import Rewards, question_of

Tell = Callable[[int], None]
"""Takes how many more samples are there."""


@dataclass(frozen=True)
class Wanted:
    """Responses to be drawn; see `Rollout.stream`."""

    prompts: list[Prompt]
    sizes: GroupSize
    seed: tuple[int | str, ...]
    """Names of the draw."""
    sampling: Sampling | None = None
    first: int = 0


class Plan(NamedTuple):
    """What a step draws first: responses to its own prompts."""

    places: list[int]
    """Of the prompts in the data."""
    wanted: Wanted
    position: int
    """Prompts taken from the data so far, these included."""


@dataclass(frozen=True)
class Draw:
    """A plan that was carried out."""

    places: list[int]
    groups: list[Group]
    position: int


@dataclass(frozen=True)
class Collected:
    """What one step has to train on."""

    groups: list[Group]
    """optim.prompts_per_step of them."""
    rounds: list[list[Group]]
    """As they were sampled: the step's own prompts, unbiased, then the fresh ones of each refill."""
    left: int
    """Groups that still teach nothing."""
    position: int
    """Prompts taken from the data so far, those of this step included."""
    places: list[list[int]] = field(default_factory=list)
    """Of each round: where in the data its prompts are."""


def collect(
    rollout: Rollout,
    verifier: Rewards,
    prompts: list[Prompt],
    position: int,
    step: int,
    method: Method,
    config: TrainConfig,
    clock: Clock,
    difficulty: Difficulty | None = None,
    drawn: Draw | None = None,
) -> Collected:
    """Sample the next prompts, verify the responses, and replace groups that teach nothing by fresh ones (rollout.refill).

    A fresh group takes the place of a replaceable one, in order, if its rewards teach something. (All-wrong groups that stay for their
    entropy pressure must not be imported as well: they would crowd the batch, one in two on a hard task.) Whatever is still replaceable
    after rollout.refill_rounds stays, so that the batch always has its size.

    Args:
        prompts: all of them.
        position: how many were taken by earlier steps.
        step: 1-based; names the draw, together with the round.
        difficulty: chooses prompts and sizes of groups; None takes the plain order.
        drawn: the step's own prompts, where they were sampled before.
    """
    seed, size = config.run.seed, config.rollout.group_size
    difficulty = difficulty or Difficulty(config.difficulty, prompts, seed)
    if drawn is None:
        plan = planned(prompts, position, step, config, difficulty)
        drawn = Draw(plan.places, sample_groups(rollout, verifier, plan.wanted, clock), plan.position)
    groups, position = drawn.groups, drawn.position
    rounds, taken_places = [groups], [drawn.places]
    places = _replaceable_places(groups, method, config)
    while places and len(rounds) <= config.rollout.refill_rounds:
        chosen, position = difficulty.take(position, len(places), step, len(rounds), [place for part in taken_places for place in part])
        if not chosen:
            break
        wanted = Wanted([prompts[place] for place in chosen], size, (seed, "train", step, "refill", len(rounds)))
        fresh = sample_groups(rollout, verifier, wanted, clock)
        rounds.append(fresh)
        taken_places.append(chosen)
        useful = [group for group, use in zip(fresh, teaches(fresh, config), strict=True) if use]
        taken = dict(zip(places, useful, strict=False))
        groups = [taken.get(place, group) for place, group in enumerate(groups)]
        places = _replaceable_places(groups, method, config)
    return Collected(groups, rounds, len(places), position, taken_places)


def planned(prompts: list[Prompt], position: int, step: int, config: TrainConfig, difficulty: Difficulty) -> Plan:
    """Return what a step draws first. All ranks must call it together. Arguments as for `collect`."""
    places, position = difficulty.take(position, config.optim.prompts_per_step, step)
    sizes = difficulty.group_sizes(places, config.rollout.group_size)
    return Plan(places, Wanted([prompts[place] for place in places], sizes, (config.run.seed, "train", step)), position)


def teaches(groups: list[Group], config: TrainConfig) -> list[bool]:
    """Return which groups have an advantage that reaches a trained response."""
    batch = assign_credit(groups, config)
    return _any_of_group(groups, [used and advantage != 0 for used, advantage in zip(batch.trained, batch.advantages, strict=True)])


def replaceable(groups: list[Group], method: Method, config: TrainConfig) -> list[bool]:
    """Return which groups rollout.refill replaces: those that teach nothing and, for no_signal, to whose tokens the method as it is now
    gives nothing either. (One that needs a forward pass for that is not asked.)"""
    if config.rollout.refill == "zero_variance" or needs_pass(method):
        kept = teaches(groups, config)
    else:
        batch = assign_credit(groups, config)
        kept = _any_of_group(groups, weigh(batch, token_batch(batch, ("refill",)), method).has_signal())
    return [not keep for keep in kept]


def _any_of_group(groups: list[Group], samples: list[bool]) -> list[bool]:
    each = iter(samples)
    return [any([next(each) for _ in group.samples]) for group in groups]


def _replaceable_places(groups: list[Group], method: Method, config: TrainConfig) -> list[int]:
    return [place for place, empty in enumerate(replaceable(groups, method, config)) if empty]


def sample_groups(rollout: Rollout, verifier: Rewards, wanted: Wanted, clock: Clock, progress: Tell = lambda count: None) -> list[Group]:
    """Return a group for each prompt. Finished samples go to the verifier while others are still being generated.

    Every rank samples a share of the prompts, and gets the groups of all.
    """
    mine = sample_share(rollout, verifier, wanted, clock, progress)
    with clock.part("exchange"):
        drawn = [pair for part in dist.all_gather(mine) for pair in part]
    progress(len(drawn) - len(mine))
    return grouped(wanted, drawn)


def sample_share(rollout: Rollout, verifier: Rewards, wanted: Wanted, clock: Clock, progress: Tell) -> list[tuple[Sample, Verdict]]:
    """Return this rank's share of the samples, ordered by prompt, then index, with their verdicts. It waits for no other rank, so that a
    thread can do it. Arguments as for `sample_groups`."""
    samples, pending, prompts, first = [], [], wanted.prompts, wanted.first
    share = dist.share(len(prompts))
    mine = slice(share.start, share.stop)
    mine_of_each = wanted.sizes if isinstance(wanted.sizes, int) else wanted.sizes[mine]
    with clock.part("rollout"):
        for part in rollout.stream(prompts[mine], mine_of_each, wanted.seed, wanted.sampling, first + share.start):
            samples += part
            progress(len(part))
            with clock.part("verify_wait"):
                pending.append(verifier.submit([question_of(prompts[sample.prompt - first], sample.text) for sample in part]))
    with clock.part("verify_wait"):
        verdicts = [verdict for part in pending for verdict in part.result()]
    return sorted(zip(samples, verdicts, strict=True), key=lambda pair: (pair[0].prompt, pair[0].index))


def grouped(wanted: Wanted, pairs: list[tuple[Sample, Verdict]]) -> list[Group]:
    """Return a group for each prompt of all ranks' samples, which are in order."""
    prompts = wanted.prompts
    bounds = pairwise(accumulate(sizes_of(wanted.sizes, len(prompts)), initial=0))
    return [Group(prompt, *map(list, zip(*pairs[start:stop], strict=True))) for prompt, (start, stop) in zip(prompts, bounds, strict=True)]
