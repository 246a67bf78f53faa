"""Padded micro-batches: how much goes through the model at once, and on which rank. Memory and time only, never the gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aer_train.model.policy import Policy
from aer_train.model.shared_prompts import SharedPrompts
from aer_train.step.shared import Shared, Unit, lay_out, unit_width, units
from aer_train.types import Sample

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Columns:
    """A number of each of the N loss tokens of a step: (N,) float32 each."""

    slices: Mapping[int, slice]
    """Where the tokens of each sample are, by the sample's number."""
    advantages: np.ndarray
    entropy_coef: np.ndarray
    """At an entropy_scale of 1."""
    weights: np.ndarray | None = None
    divergence_coef: np.ndarray | None = None
    held: np.ndarray | None = None
    old_logprobs: np.ndarray | None = None
    """Nats; None when strictly on-policy."""
    reference: np.ndarray | None = None
    """Log-probs of the policy that a KL penalty pulls towards, nats."""
    statistic_coef: np.ndarray | None = None
    """Of each sample of the step, by its number; the others are of each token."""


@dataclass(frozen=True)
class MicroBatch:
    """B samples padded on the right to T + 1 tokens; position t predicts token t + 1, so everything here is T wide.

    Where samples share prompts, input_ids and attention_mask are of U sequences of L tokens, and all the rest of the responses alone: T is
    then the length of the longest.

    Float tensors are (B, T) float32, 0 outside the responses; None where no token has one.
    """

    rows: list[int]
    """Which samples these are, by their number; none in a micro-batch that only keeps a rank in step."""
    spans: list[slice]
    """Where the response tokens of each are predicted."""
    input_ids: Tensor
    """(B, T) or (U, L) int64"""
    attention_mask: Tensor
    """The same, 1 at real tokens."""
    targets: Tensor
    """(B, T) int64, IGNORE_INDEX outside the response."""
    loss_mask: Tensor
    """(B, T) bool, True where a response token is predicted."""
    rollout_logprobs: Tensor
    """Nats, as recorded when the sample was drawn."""
    advantages: Tensor
    entropy_coef: Tensor
    weights: Tensor | None
    divergence_coef: Tensor | None
    held: Tensor | None
    old_logprobs: Tensor | None
    reference: Tensor | None
    loss_tokens: int
    """How many positions loss_mask holds."""
    padding: int
    """How many positions hold no token."""
    statistic_coef: Tensor | None = None
    """(B,)"""
    shared: Shared | None = None
    """Where prompts and responses are; None: every sample has a row."""

    def hidden(self, policy: Policy) -> Tensor:
        """Return the policy's hidden states (B, T, D) at these positions; call it in the policy's forward pass."""
        if self.shared is None:
            return policy.hidden(self.input_ids, self.attention_mask)
        return self.shared.take(policy.hidden_shared(self.input_ids, self.shared.segments, self.shared.positions))


def partition(widths: Sequence[int], tokens_per_microbatch: int, world: int = 1) -> list[list[list[int]]]:
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
    rows: Sequence[int],
    columns: Columns | None,
    *,
    tokens_per_microbatch: int,
    pad_id: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    shared: SharedPrompts | None = None,
) -> list[MicroBatch]:
    """Return this rank's micro-batches (see `partition`).

    Args:
        samples: all of a step.
        rows: the samples to pack, by their number, each with at least one response token.
        columns: what the loss needs of each token; None for a pass without a loss.
        shared: how the policy reads prompts once; None: it does not.
    Raises:
        ValueError - the prompt of a sample has no tokens: nothing predicts its first response token.
    """
    for row in rows:
        if not samples[row].prompt_tokens:
            raise ValueError(f"prompt_tokens must hold at least one token, got none in sample {row}")
    parts = units(samples, rows, shared, tokens_per_microbatch, world)
    chunks = partition([unit_width(unit, samples) for unit in parts], tokens_per_microbatch, world)[rank]
    return [_micro_batch([parts[index] for index in chunk], samples, columns, pad_id, device) for chunk in chunks]


def response_slice(sample: Sample) -> slice:
    """Return where in a row of a sample's own the response tokens are predicted."""
    return slice(len(sample.prompt_tokens) - 1, len(sample.prompt_tokens) + len(sample.tokens) - 1)


def _cut(order: Sequence[int], widths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut indices in the order of their widths into micro-batches of at most `budget` padded tokens."""
    chunks: list[list[int]] = []
    for index in order:
        if chunks and (len(chunks[-1]) + 1) * widths[index] <= budget:
            chunks[-1].append(index)
        else:
            chunks.append([index])
    return chunks


def _micro_batch(parts: list[Unit], samples: Sequence[Sample], columns: Columns | None, pad_id: int, device: torch.device) -> MicroBatch:
    rows = [row for unit in parts for row in unit]
    if len(rows) > len(parts):
        input_ids, shared = lay_out(parts, samples, pad_id, device)
        spans, shape = [slice(0, len(samples[row].tokens)) for row in rows], tuple(shared.source.shape)
        attention_mask = (shared.segments >= 0).long()
    else:
        spans, shared = [response_slice(samples[row]) for row in rows], None
        shape = max(1, len(rows)), max((span.stop for span in spans), default=1)
        input_ids, attention_mask = _rows(rows, samples, shape, pad_id, device)

    def column(name: str) -> Tensor | None:
        values = None if columns is None else getattr(columns, name)
        if values is None or columns is None:
            return None
        return _spread([values[columns.slices[row]] for row in rows], spans, shape, 0.0, device)

    def given(name: str) -> Tensor:
        found = column(name)
        return torch.zeros(shape, device=device) if found is None else found

    targets = _spread([samples[row].tokens for row in rows], spans, shape, IGNORE_INDEX, device)
    statistic = None if columns is None or columns.statistic_coef is None else columns.statistic_coef[rows or [0]]
    return MicroBatch(
        rows,
        spans,
        input_ids,
        attention_mask,
        targets,
        targets != IGNORE_INDEX,
        _spread([samples[row].logprobs for row in rows], spans, shape, 0.0, device),
        given("advantages"),
        given("entropy_coef"),
        column("weights"),
        column("divergence_coef"),
        column("held"),
        column("old_logprobs"),
        column("reference"),
        sum(len(samples[row].tokens) for row in rows),
        input_ids.numel() - sum(unit_width(unit, samples) for unit in parts),
        None if statistic is None else torch.from_numpy(statistic).to(device),
        shared,
    )


def _rows(rows: list[int], samples: Sequence[Sample], shape: tuple[int, ...], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask of samples with a row each, (B, T) int64."""
    input_ids, attention_mask = np.full(shape, pad_id), np.zeros(shape, np.int64)
    attention_mask[:, 0] = 1  # an empty micro-batch still runs one token
    for b, row in enumerate(rows):
        tokens = (samples[row].prompt_tokens + samples[row].tokens)[:-1]
        input_ids[b, : len(tokens)], attention_mask[b, : len(tokens)] = tokens, 1
    return torch.from_numpy(input_ids).to(device), torch.from_numpy(attention_mask).to(device)


def _spread(
    values: Sequence[Sequence[float] | np.ndarray], spans: list[slice], shape: tuple[int, ...], fill: float, device: torch.device
) -> Tensor:
    """Numbers of the tokens of each response in their places, (B, T): int64 where fill is a whole number, else float32."""
    found = np.full(shape, fill, np.int64 if isinstance(fill, int) else np.float32)
    for b, (span, of_response) in enumerate(zip(spans, values, strict=True)):
        found[b, span] = of_response
    return torch.from_numpy(found).to(device)
