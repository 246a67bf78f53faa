"""Padded micro-batches: how much goes through the model at once, and on which rank. Memory and time only, never the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aer_train.types import Sample

IGNORE_INDEX = -100


@dataclass(frozen=True)
class MicroBatch:
    """B samples padded on the right to T + 1 tokens; position t predicts token t + 1, so everything here is T wide."""

    rows: list[int]
    """Which samples these are, in the order given to `micro_batches`; none in a micro-batch that only keeps a rank in step."""
    input_ids: Tensor
    """(B, T) int64"""
    attention_mask: Tensor
    """(B, T) int64, 1 at real tokens."""
    targets: Tensor
    """(B, T) int64, IGNORE_INDEX outside the response."""
    loss_mask: Tensor
    """(B, T) bool, True where a response token is predicted."""
    advantages: Tensor
    """(B,) float32"""
    entropy_coef: Tensor
    """(B,) float32, alpha * w(q) of the sample's prompt."""
    rollout_logprobs: Tensor
    """(B, T) float32, nats, as recorded when the sample was drawn; 0 outside the response."""
    old_logprobs: Tensor | None
    """(B, T) float32, nats, 0 outside the response; None when strictly on-policy."""
    loss_tokens: int
    """How many positions loss_mask holds."""
    padding: int
    """How many positions hold no token."""


def plan(widths: Sequence[int], tokens_per_microbatch: int, world: int = 1) -> list[list[list[int]]]:
    """Return the micro-batches of every rank as lists of indices: as few as the budget allows, and then as equal as possible.

    Every rank gets the same number of them, and the k-th ones of all ranks cost about the same, since ranks wait for each other at each.
    The cost of a micro-batch is its padded tokens. A micro-batch may be empty when there are fewer samples than ranks.

    Args:
        widths: padded tokens of each sample, >= 1.
        tokens_per_microbatch: padded tokens of a micro-batch; a sample that is wider by itself gets one of its own.
        world: ranks, >= 1.
    Returns:
        [rank][micro-batch][indices into widths].
    """
    order = sorted(range(len(widths)), key=widths.__getitem__)
    count = -(-len(_cut(order, widths, tokens_per_microbatch)) // world) * world
    low, high = 1, tokens_per_microbatch
    while low < high:  # the smallest budget that needs no more micro-batches
        middle = (low + high) // 2
        low, high = (low, middle) if len(_cut(order, widths, middle)) <= count else (middle + 1, high)
    chunks = _cut(order, widths, low)
    chunks += [[]] * (count - len(chunks))

    def cost(chunk: list[int]) -> int:
        return len(chunk) * widths[chunk[-1]] if chunk else 0

    chunks.sort(key=cost, reverse=True)  # the largest first: what does not fit fails at once
    ranks: list[list[list[int]]] = [[] for _ in range(world)]
    totals = [0] * world
    for start in range(0, count, world):
        least_loaded = sorted(range(world), key=totals.__getitem__)
        for rank, chunk in zip(least_loaded, chunks[start : start + world], strict=True):
            ranks[rank].append(chunk)
            totals[rank] += cost(chunk)
    return ranks


def micro_batches(
    samples: Sequence[Sample],
    advantages: Sequence[float],
    entropy_coef: Sequence[float],
    old_logprobs: Sequence[Sequence[float]] | None,
    *,
    tokens_per_microbatch: int,
    pad_id: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> list[MicroBatch]:
    """Return this rank's micro-batches (see `plan`).

    Args:
        samples: each with at least one response token.
        advantages, entropy_coef: one number for each sample.
        old_logprobs: nats, one number for each response token of each sample; None when strictly on-policy.
    """
    chunks = plan([_width(sample) for sample in samples], tokens_per_microbatch, world)[rank]
    return [_micro_batch(chunk, samples, advantages, entropy_coef, old_logprobs, pad_id, device) for chunk in chunks]


def response_slice(sample: Sample) -> slice:
    """Return where in a row of a micro-batch the response tokens are predicted."""
    return slice(len(sample.prompt_tokens) - 1, _width(sample))


def _width(sample: Sample) -> int:
    return len(sample.prompt_tokens) + len(sample.tokens) - 1


def _cut(order: Sequence[int], widths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut indices in the order of their widths into micro-batches of at most `budget` padded tokens."""
    chunks: list[list[int]] = []
    for index in order:
        if chunks and (len(chunks[-1]) + 1) * widths[index] <= budget:
            chunks[-1].append(index)
        else:
            chunks.append([index])
    return chunks


def _micro_batch(
    rows: list[int],
    samples: Sequence[Sample],
    advantages: Sequence[float],
    entropy_coef: Sequence[float],
    old_logprobs: Sequence[Sequence[float]] | None,
    pad_id: int,
    device: torch.device,
) -> MicroBatch:
    shape = max(1, len(rows)), max((_width(samples[row]) for row in rows), default=1)
    input_ids, targets = np.full(shape, pad_id), np.full(shape, IGNORE_INDEX)
    attention_mask = np.zeros(shape, np.int64)
    attention_mask[:, 0] = 1  # an empty micro-batch still runs one token
    rollout_logprobs, old = np.zeros(shape, np.float32), None if old_logprobs is None else np.zeros(shape, np.float32)
    per_row = np.zeros((2, shape[0]), np.float32)
    for b, row in enumerate(rows):
        sample, span = samples[row], response_slice(samples[row])
        input_ids[b, : span.stop], attention_mask[b, : span.stop] = (sample.prompt_tokens + sample.tokens)[:-1], 1
        targets[b, span], rollout_logprobs[b, span] = sample.tokens, sample.logprobs
        per_row[:, b] = advantages[row], entropy_coef[row]
        if old is not None and old_logprobs is not None:
            old[b, span] = old_logprobs[row]

    def place(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return MicroBatch(
        rows,
        place(input_ids),
        place(attention_mask),
        place(targets),
        place(targets != IGNORE_INDEX),
        place(per_row[0]),
        place(per_row[1]),
        place(rollout_logprobs),
        None if old is None else place(old),
        sum(len(samples[row].tokens) for row in rows),
        shape[0] * shape[1] - sum(_width(samples[row]) for row in rows),
    )
