"""What every rollout backend does, so that the trainer and evaluation need not know which one they have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from aer_train.types import Prompt, Sample, Sampling

GroupSize = int | Sequence[int]
"""Responses to each prompt: the same number, or one for each."""


class SyncError(RuntimeError):
    """A backend does not sample from the weights that it should have."""


class Rollout(Protocol):
    """A source of samples of the policy. It is told when the policy has changed: `sync`."""

    def generate(
        self, prompts: list[Prompt], group_size: GroupSize, seed: tuple[int | str, ...], sampling: Sampling | None = None, first: int = 0
    ) -> list[Sample]:
        """Return the samples of `stream`, ordered by prompt, then index."""

    def stream(
        self, prompts: list[Prompt], group_size: GroupSize, seed: tuple[int | str, ...], sampling: Sampling | None = None, first: int = 0
    ) -> Iterator[list[Sample]]:
        """Yield the samples of each prompt as they are finished, in any order, so that verification overlaps with generation.

        Args:
            prompts: what to answer.
            group_size: responses to each prompt, >= 1.
            seed: names the draw, for example (run seed, "train", step); the same names give the same random numbers.
            sampling: what the samples are drawn from; None is what the section rollout says.
            first: number of the first prompt, when these are a share of a longer list: `Sample.prompt` and the draws count from it.
        """

    def release(self) -> None:
        """Make room for training on a GPU that both share. A `sync` comes before the next sample."""

    def sync(self, version: int) -> dict[str, float | None]:
        """Sample from the policy's present weights from now on.

        Args:
            version: training steps behind those weights; samples carry it.
        Returns:
            metrics: rollout/version, and from a backend with weights of its own rollout/probe_*: how far they are from the policy's.
        Raises:
            SyncError - the backend does not have the policy's weights.
        """

    def close(self) -> None:
        """Give back every resource; a second call does nothing."""


def ordered(parts: Iterable[list[Sample]]) -> list[Sample]:
    """Return all samples of a stream, ordered by prompt, then index."""
    return sorted((sample for part in parts for sample in part), key=lambda sample: (sample.prompt, sample.index))


def sizes_of(group_size: GroupSize, count: int) -> list[int]:
    """Return the number of responses to each of `count` prompts."""
    return [group_size] * count if isinstance(group_size, int) else list(group_size)
