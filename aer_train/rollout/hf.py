"""Rollouts with the policy itself: each prompt is read once, its samples grow side by side, and those that have ended leave the batch.

The k-th token of sample j of prompt p at step s is the inverse CDF of the tempered distribution at u(run seed, s, p, j, k).
Batches, padding and whatever else runs in the process cannot change it (beyond the rounding of the logits).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from aer_train.config.tree import MOST_ROWS, RolloutConfig
from aer_train.data.encode import encode_prompts
from aer_train.model import Policy, cut, response_text, with_stops
from aer_train.rollout.growing import Growing
from aer_train.rollout.padding_probe import prove_rollouts
from aer_train.rollout.protocol import GroupSize, ordered, sizes_of
from aer_train.seeds import generator
from aer_train.types import Prompt, Sample, Sampling


class HFRollout:
    """Samples responses with the policy itself, in its present state. See `protocol.Rollout`."""

    def __init__(self, policy: Policy, config: RolloutConfig) -> None:
        """
        Raises:
            ValueError - rollouts of this model would not be right.
        """
        prove_rollouts(policy)
        self.policy = with_stops(policy, config.stop)
        self.config = config
        self.version = 0
        """Training steps behind the weights that sample."""

    def generate(
        self, prompts: list[Prompt], group_size: GroupSize, seed: tuple[int | str, ...], sampling: Sampling | None = None, first: int = 0
    ) -> list[Sample]:
        """Return the samples of `stream`, ordered by prompt, then index."""
        return ordered(self.stream(prompts, group_size, seed, sampling, first))

    def stream(
        self, prompts: list[Prompt], group_size: GroupSize, seed: tuple[int | str, ...], sampling: Sampling | None = None, first: int = 0
    ) -> Iterator[list[Sample]]:
        """Yield them as they end."""
        sampling = Sampling(self.config.temperature, self.config.top_p) if sampling is None else sampling
        encoded = dict(enumerate(encode_prompts(self.policy.tokenizer, prompts), first))
        places = [(p, index) for p, size in zip(encoded, sizes_of(group_size, len(prompts)), strict=True) for index in range(size)]
        places.sort(key=lambda place: len(encoded[place[0]]))  # stable: less padding in a batch
        with self.policy.gathered():
            size = self.config.batch_size or MOST_ROWS
            for start in range(0, len(places), size):
                yield from self._batch(encoded, places[start : start + size], seed, sampling)

    def release(self) -> None:
        """Nothing is held that training could use."""

    def sync(self, version: int) -> dict[str, float | None]:
        """Nothing to do: the policy samples by itself."""
        self.version = version
        return {"rollout/version": version}

    def close(self) -> None:
        """Nothing to close."""

    def _batch(
        self, encoded: dict[int, list[int]], places: list[tuple[int, int]], seed: tuple[int | str, ...], sampling: Sampling
    ) -> Iterator[list[Sample]]:
        limit = self.config.max_new_tokens
        uniforms = np.stack([generator(*seed, prompt, index).random(limit) for prompt, index in places])
        growing = Growing(self.policy, [encoded[prompt] for prompt, _ in places], uniforms, sampling)
        while len(growing.rows):
            rows, tokens, logprobs = growing.until_some_end()
            samples = self._samples(encoded, [places[row] for row in rows], tokens, logprobs)
            yield [cut(self.policy, sample) for sample in samples]

    def _samples(
        self, encoded: dict[int, list[int]], places: list[tuple[int, int]], tokens: list[list[int]], logprobs: list[list[float]]
    ) -> list[Sample]:
        """Responses cut after their end-of-sequence token."""
        ends = [next((position for position, token in enumerate(row) if token in self.policy.eos_ids), None) for row in tokens]
        tokens = [row if end is None else row[: end + 1] for row, end in zip(tokens, ends, strict=True)]
        texts = [response_text(self.policy, row) for row in tokens]
        return [
            Sample(*place, encoded[place[0]], row, found[: len(row)], text, finished=end is not None, version=self.version)
            for place, row, found, text, end in zip(places, tokens, logprobs, texts, ends, strict=True)
        ]
