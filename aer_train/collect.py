"""The samples of one step with their verdicts: generation and verification side by side."""

from __future__ import annotations

from dataclasses import dataclass

from aer_train.clock import Clock
from aer_train.config import TrainConfig
from aer_train.data import prompts_at
from aer_train.rollout.hf import HFRollout
from aer_train.types import Group, Prompt
from aer_train.verify import Verifier


@dataclass(frozen=True)
class Collected:
    """What one step has to train on."""

    groups: list[Group]
    """optim.prompts_per_step of them."""
    position: int
    """Prompts taken from the data so far, those of this step included."""


def collect(
    rollout: HFRollout, verifier: Verifier, prompts: list[Prompt], position: int, step: int, config: TrainConfig, clock: Clock
) -> Collected:
    """Sample the next prompts and verify the responses.

    Args:
        prompts: all of them.
        position: how many were taken by earlier steps.
        step: 1-based; names the draw.
    """
    count = config.optim.prompts_per_step
    chosen = prompts_at(prompts, config.run.seed, position, count)
    groups = draw(rollout, verifier, chosen, config.rollout.group_size, (config.run.seed, "train", step), clock)
    return Collected(groups, position + count)


def draw(
    rollout: HFRollout, verifier: Verifier, prompts: list[Prompt], group_size: int, seed: tuple[int | str, ...], clock: Clock
) -> list[Group]:
    """Return a group for each prompt. Finished samples go to the verifier while others are still being generated."""
    samples, pending = [], []
    with clock.part("rollout"):
        for part in rollout.stream(prompts, group_size, seed):
            samples += part
            with clock.part("verify_wait"):
                pending.append(verifier.submit([(sample.text, prompts[sample.prompt].answer) for sample in part]))
    with clock.part("verify_wait"):
        verdicts = [verdict for part in pending for verdict in part.result()]
    drawn = sorted(zip(samples, verdicts, strict=True), key=lambda pair: (pair[0].prompt, pair[0].index))
    return [
        Group(prompt, *map(list, zip(*drawn[place * group_size : (place + 1) * group_size], strict=True)))
        for place, prompt in enumerate(prompts)
    ]
