"""Sequences of a prompt and several responses to it, and where in them each response's tokens are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from aer_train.model.shared_prompts import SharedPrompts
from aer_train.types import Sample

Unit = list[int]
"""Samples, by their number, that read one prompt together."""


@dataclass(frozen=True)
class Shared:
    """U sequences of L tokens with S responses of at most T tokens."""

    segments: Tensor
    """(U, L) int64: 0 in the prompt, k in its response k, -1 in the padding behind."""
    positions: Tensor
    """(U, L) int64: place in the prompt and the response after it."""
    ends: Tensor
    """(U,) int64: the last token of each prompt, among U L."""
    source: Tensor
    """(S, T) int64: the state that predicts each token, among U L states and K copies of those at `ends`."""
    most: int
    """K, the most responses of a sequence."""

    def take(self, hidden: Tensor) -> Tensor:
        """Return the states (S, T, D) that predict the responses, from those of the sequences (U, L, D).

        The first token of every response is predicted at the prompt's end. That state is copied before it is indexed: no state is then
        indexed twice, and its gradient is a sum in a fixed order.
        """
        states = hidden.flatten(0, 1)
        first = states.index_select(0, self.ends)[:, None].expand(-1, self.most, -1).flatten(0, 1)
        return torch.cat([states, first]).index_select(0, self.source.flatten()).view(*self.source.shape, -1)


def units(samples: Sequence[Sample], rows: Sequence[int], shared: SharedPrompts | None, budget: int, world: int = 1) -> list[Unit]:
    """Cut samples into the units that pass through the layers as one sequence each.

    Neighbours with the same prompt share it: as many as are best read together, fit the budget, and leave every rank a unit.

    Args:
        rows: samples by their number.
        shared: how the policy reads prompts once; None: every sample is a unit.
        budget: tokens of a sequence.
        world: ranks.
    """
    if shared is None:
        return [[row] for row in rows]
    found: list[Unit] = []
    for _, members in groupby(rows, key=lambda row: samples[row].prompt_tokens):
        group = list(members)
        prompt, longest = len(samples[group[0]].prompt_tokens), max(len(samples[row].tokens) for row in group)
        fit = max(1, (budget - prompt) // max(1, longest - 1))
        size = min(shared.together(prompt, longest, len(group)), fit, max(1, len(rows) // world))
        count = -(-len(group) // size)
        found += [group[part * len(group) // count : (part + 1) * len(group) // count] for part in range(count)]
    return found


def unit_width(unit: Unit, samples: Sequence[Sample]) -> int:
    """Tokens of a unit's sequence: the last token of a response predicts nothing, and is left out."""
    return len(samples[unit[0]].prompt_tokens) + sum(len(samples[row].tokens) - 1 for row in unit)


def lay_out(parts: Sequence[Unit], samples: Sequence[Sample], pad_id: int, device: torch.device) -> tuple[Tensor, Shared]:
    """Return the tokens (U, L) int64 of the units' sequences, and where everything is in them."""
    length = max(unit_width(unit, samples) for unit in parts)
    responses, longest = [row for unit in parts for row in unit], max(len(samples[row].tokens) for unit in parts for row in unit)
    most = max(map(len, parts))
    ids, segments = np.full((len(parts), length), pad_id), np.full((len(parts), length), -1)
    positions, source = np.zeros_like(ids), np.zeros((len(responses), longest), np.int64)
    ends, copies, s = np.zeros(len(parts), np.int64), len(parts) * length, 0
    for u, unit in enumerate(parts):
        prompt = samples[unit[0]].prompt_tokens
        place = len(prompt)
        ids[u, :place], segments[u, :place], positions[u, :place] = prompt, 0, np.arange(place)
        ends[u] = u * length + place - 1
        for k, row in enumerate(unit):
            tokens = samples[row].tokens
            stop = place + len(tokens) - 1
            ids[u, place:stop], segments[u, place:stop] = tokens[:-1], k + 1
            positions[u, place:stop] = len(prompt) + np.arange(len(tokens) - 1)
            source[s, 0], source[s, 1 : len(tokens)] = copies + u * most + k, u * length + np.arange(place, stop)
            place, s = stop, s + 1

    def on_device(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return on_device(ids), Shared(on_device(segments), on_device(positions), on_device(ends), on_device(source), most)
