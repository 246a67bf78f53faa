"""Padded micro-batches: how much goes through the model at once. Memory only, never the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aer_train.types import Sample

IGNORE_INDEX = -100


@dataclass(frozen=True)
class MicroBatch:
    """B samples padded on the right to T + 1 tokens; position t predicts token t + 1, so everything here is T wide."""

    rows: list[int]
    """Which samples these are, in the order given to `micro_batches`."""
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


def micro_batches(
    samples: Sequence[Sample],
    advantages: Sequence[float],
    entropy_coef: Sequence[float],
    old_logprobs: Sequence[Sequence[float]] | None,
    *,
    tokens_per_microbatch: int,
    pad_id: int,
    device: torch.device,
) -> list[MicroBatch]:
    """Sort the samples by length and cut them into micro-batches of at most tokens_per_microbatch padded tokens.

    Args:
        samples: each with at least one response token.
        advantages, entropy_coef: one number for each sample.
        old_logprobs: nats, one number for each response token of each sample; None when strictly on-policy.
        tokens_per_microbatch: a sample that is longer by itself gets a micro-batch of its own.
    """
    order = sorted(range(len(samples)), key=lambda i: _width(samples[i]))
    chunks: list[list[int]] = []
    for row in order:
        if chunks and (len(chunks[-1]) + 1) * _width(samples[row]) <= tokens_per_microbatch:
            chunks[-1].append(row)
        else:
            chunks.append([row])
    return [_micro_batch(chunk, samples, advantages, entropy_coef, old_logprobs, pad_id, device) for chunk in chunks]


def response_slice(sample: Sample) -> slice:
    """Return where in a row of a micro-batch the response tokens are predicted."""
    return slice(len(sample.prompt_tokens) - 1, _width(sample))


def _width(sample: Sample) -> int:
    return len(sample.prompt_tokens) + len(sample.tokens) - 1


def _micro_batch(
    rows: list[int],
    samples: Sequence[Sample],
    advantages: Sequence[float],
    entropy_coef: Sequence[float],
    old_logprobs: Sequence[Sequence[float]] | None,
    pad_id: int,
    device: torch.device,
) -> MicroBatch:
    shape = len(rows), max(_width(samples[row]) for row in rows)
    input_ids, targets = torch.full(shape, pad_id), torch.full(shape, IGNORE_INDEX)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    rollout_logprobs, old = torch.zeros(shape), None if old_logprobs is None else torch.zeros(shape)
    for b, row in enumerate(rows):
        sample = samples[row]
        ids, span = torch.tensor(sample.prompt_tokens + sample.tokens), response_slice(sample)
        input_ids[b, : span.stop], attention_mask[b, : span.stop] = ids[:-1], 1
        targets[b, span] = ids[span.start + 1 :]
        rollout_logprobs[b, span] = torch.tensor(sample.logprobs)
        if old is not None and old_logprobs is not None:
            old[b, span] = torch.tensor(old_logprobs[row])
    return MicroBatch(
        rows,
        input_ids.to(device),
        attention_mask.to(device),
        targets.to(device),
        (targets != IGNORE_INDEX).to(device),
        torch.tensor([advantages[row] for row in rows], dtype=torch.float32, device=device),
        torch.tensor([entropy_coef[row] for row in rows], dtype=torch.float32, device=device),
        rollout_logprobs.to(device),
        None if old is None else old.to(device),
    )
