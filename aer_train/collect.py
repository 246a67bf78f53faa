"""The samples of one step with their verdicts: generation and verification side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aer_kernels import AdaptiveEntropyController
from aer_train import dist
from aer_train.clock import Clock
from aer_train.config import TrainConfig
from aer_train.data import prompts_at
from aer_train.judge import replaceable, teaches
from aer_train.rollout.protocol import Rollout
from aer_train.types import Group, Prompt
from aer_train.verify import Verifier


@dataclass(frozen=True)
class Collected:
    """What one step has to train on."""

    groups: list[Group]
    """optim.prompts_per_step of them."""
    rounds: list[list[Group]]
    """As they were drawn: the step's own prompts, unbiased, then the fresh ones of each refill."""
    left: int
    """Groups that still teach nothing."""
    position: int
    """Prompts taken from the data so far, those of this step included."""


def collect(
    rollout: Rollout,
    verifier: Verifier,
    prompts: list[Prompt],
    position: int,
    step: int,
    controller: AdaptiveEntropyController,
    config: TrainConfig,
    clock: Clock,
) -> Collected:
    """Sample the next prompts, verify the responses, and replace groups that teach nothing by fresh ones (rollout.refill).

    A fresh group takes the place of a replaceable one, in order, if its rewards teach something. (All-wrong groups that stay for their
    entropy pressure must not be imported as well: they would crowd the batch, one in two on a hard task.) Whatever is still replaceable
    after rollout.refill_rounds stays, so that the batch always has its size.

    Args:
        prompts: all of them.
        position: how many were taken by earlier steps.
        step: 1-based; names the draw, together with the round.
    """
    seed, size = config.run.seed, config.rollout.group_size
    chosen = prompts_at(prompts, seed, position, config.optim.prompts_per_step)
    position += len(chosen)
    groups = draw(rollout, verifier, chosen, size, (seed, "train", step), clock)
    rounds = [groups]
    places = _replaceable_places(groups, controller, config)
    while places and len(rounds) <= config.rollout.refill_rounds:
        chosen = prompts_at(prompts, seed, position, len(places))
        position += len(chosen)
        fresh = draw(rollout, verifier, chosen, size, (seed, "train", step, "refill", len(rounds)), clock)
        rounds.append(fresh)
        useful = [group for group, use in zip(fresh, teaches(fresh, controller, config), strict=True) if use]
        taken = dict(zip(places, useful, strict=False))
        groups = [taken.get(place, group) for place, group in enumerate(groups)]
        places = _replaceable_places(groups, controller, config)
    return Collected(groups, rounds, len(places), position)


def _replaceable_places(groups: list[Group], controller: AdaptiveEntropyController, config: TrainConfig) -> list[int]:
    return [place for place, empty in enumerate(replaceable(groups, controller, config)) if empty]


def draw(
    rollout: Rollout,
    verifier: Verifier,
    prompts: list[Prompt],
    group_size: int,
    seed: tuple[int | str, ...],
    clock: Clock,
    temperature: float | None = None,
    first: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> list[Group]:
    """Return a group for each prompt. Finished samples go to the verifier while others are still being generated.

    Every rank draws a share of the prompts, and gets the groups of all.

    Args:
        temperature, first: see `Rollout.stream`.
        progress: is told how many more samples are there.
    """
    samples, pending = [], []
    share = dist.share(len(prompts))
    with clock.part("rollout"):
        for part in rollout.stream(prompts[share.start : share.stop], group_size, seed, temperature, first + share.start):
            samples += part
            progress(len(part))
            with clock.part("verify_wait"):
                pending.append(verifier.submit([(sample.text, prompts[sample.prompt - first].answer) for sample in part]))
    with clock.part("verify_wait"):
        verdicts = [verdict for part in pending for verdict in part.result()]
    mine = sorted(zip(samples, verdicts, strict=True), key=lambda pair: (pair[0].prompt, pair[0].index))
    with clock.part("exchange"):
        drawn = [pair for part in dist.all_gather(mine) for pair in part]
    progress(len(drawn) - len(mine))
    return [
        Group(prompt, *map(list, zip(*drawn[place * group_size : (place + 1) * group_size], strict=True)))
        for place, prompt in enumerate(prompts)
    ]
