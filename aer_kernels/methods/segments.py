"""A carrier for credit by segment: values of stretches of a response become shifts of their tokens' advantages.

    starts -> segment of each token -> value of each segment -> shift of each token

What the segments are and what they are worth is for the method that uses this to say: a `Method` of one's own whose `terms` returns
`TokenTerms(shift=segment_shift(...))`. With preserve the mean advantage of every response stays what it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aer_kernels.methods.seam import TokenBatch


def segments_at(tokens: TokenBatch, starts: Tensor) -> Tensor:
    """Return the segment of each token, (N,) int64 in [0, S), ascending.

    Args:
        starts: (N,) bool: where a segment begins, beside the first token of every response.
    """
    first = torch.ones_like(starts)
    first[1:] = tokens.response[1:] != tokens.response[:-1]
    return (starts | first).long().cumsum(0) - 1


def segment_shift(tokens: TokenBatch, segment: Tensor, values: Tensor, *, preserve: bool = True) -> Tensor:
    """Return what is added to the advantage of each token, (N,) fp32, so that it becomes the value of its segment.

    Args:
        segment: (N,) int64 in [0, S), of each token.
        values: (S,) what a token of each segment is worth, in units of an advantage.
        preserve: move the values of each response by a constant, so that their mean over its tokens is its mean advantage.
    Raises:
        ValueError: a shape is wrong, or a segment has no value.
    """
    if segment.shape != tokens.advantages.shape:
        raise ValueError(f"segment must have shape {tuple(tokens.advantages.shape)}, got {tuple(segment.shape)}")
    if values.ndim != 1 or (segment.numel() and int(segment.max()) >= len(values)):
        largest = int(segment.max()) if segment.numel() else -1
        raise ValueError(f"values must have shape (S,) with S > {largest}, the last segment, got {tuple(values.shape)}")
    shift = values.double()[segment] - tokens.advantages.double()
    if preserve:
        lengths = tokens.per_response(torch.ones_like(shift)).clamp(min=1)
        shift = shift - (tokens.per_response(shift) / lengths)[tokens.response]
    return shift.float()
