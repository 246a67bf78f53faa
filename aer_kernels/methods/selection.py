"""Which tokens of an update are chosen, by some number or at random: the same ones however the update is packed or ordered."""

from __future__ import annotations

import torch
from torch import Tensor

from aer_kernels.methods.seam import TokenBatch

TIE = 1e-4
"""Values that differ by at most this are equal. Tokens drawn in the same state have the same entropy, and the rounding of a pass must not
tell them apart."""

EXACT = 1e-6
"""The same for numbers that were recorded once, such as log-probs: no further pass rounds them anew."""


def largest(values: Tensor, count: int, tie: float = TIE) -> Tensor:
    """Return an (N,) bool mask of the `count` largest of (N,) values, and of whatever differs from the last of them by at most `tie`."""
    if count <= 0 or not values.numel():
        return torch.zeros_like(values, dtype=torch.bool)
    last = values.kthvalue(values.numel() - min(count, values.numel()) + 1).values
    return values >= last - tie


def largest_of(values: Tensor, among: Tensor, count: int, tie: float = TIE) -> Tensor:
    """(N,) bool: the `count` largest of those (N,) values at which `among`, (N,) bool, holds, with ties as in `largest`."""
    found = torch.zeros_like(among)
    found[among] = largest(values[among], count, tie)
    return found


def ranks(tokens: TokenBatch, values: Tensor) -> Tensor:
    """(N,) int64: the place of each of (N,) values among those of its response, from 0 for the smallest."""
    order = values.argsort(stable=True)
    order = order[tokens.response[order].argsort(stable=True)]
    starts, _ = spans(tokens)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device)) - starts[tokens.response]


def spans(tokens: TokenBatch) -> tuple[Tensor, Tensor]:
    """Where the tokens of each response begin among the N, and how many there are: (R,) int64 each."""
    counts = torch.bincount(tokens.response, minlength=len(tokens.prompt))
    return counts.cumsum(0) - counts, counts


def quantiles(tokens: TokenBatch, values: Tensor, share: float, among: Tensor | None = None) -> Tensor:
    """(R,) float64: a quantile of each response's values, between two of them in proportion; 0 where there are none.

    Args:
        values: (N,) float.
        share: in [0, 1].
        among: (N,) bool: the tokens whose values count. None: all.
    """
    starts, counts = spans(tokens)
    known = values.double() if among is None else values.double().masked_fill(~among, -torch.inf)
    number = counts if among is None else tokens.per_response(among.double()).long()
    ordered = known.new_zeros(len(known) + 1)
    ordered[starts[tokens.response] + ranks(tokens, known)] = known
    last = (starts + counts - 1).clamp(min=0)
    place = share * (number - 1).clamp(min=0).double()
    low = torch.minimum(starts + counts - number + place.floor().long(), last)
    found = torch.lerp(ordered[low], ordered[torch.minimum(low + 1, last)], place - place.floor())
    return torch.where(number > 0, found, 0.0)


def draws(tokens: TokenBatch) -> Tensor:
    """(N,) float64 in [0, 1): a random number of each token, uniform and independent of the others.

    It is a hash of the seed, the response's id and the position, three rounds of splitmix64 (https://doi.org/10.1145/2714064.2660195): a
    function of these alone, whatever the order and the packing of the tokens.
    """
    ids = torch.arange(len(tokens.prompt), device=tokens.prompt.device) if tokens.ids is None else tokens.ids
    state = _mix(torch.full_like(tokens.response, _signed(tokens.seed)))
    state = _mix(state ^ _mix(ids[tokens.response]))
    state = _mix(state ^ _mix(tokens.position))
    return (state >> 11 & (1 << 53) - 1).double() / (1 << 53)


def _mix(x: Tensor) -> Tensor:
    """One round of splitmix64 on int64, whose sums and products wrap around."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _signed(0x94D049BB133111EB)
    return x ^ (x >> 31 & (1 << 33) - 1)


def _signed(number: int) -> int:
    """The int64 with the same bits as a number below 2^64."""
    return number - (1 << 64) if number >= 1 << 63 else number
