"""The next token of each sequence, at its place in the distribution that is sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from aer_kernels import KeptSet
from aer_train.types import Sampling

CDF_BLOCK = 512
"""Tokens whose probabilities are summed before any cumulative sum is taken: one pass over the vocabulary in place of several."""


def pick_tokens(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return the token of each row at its place in the distribution that is sampled (inverse CDF), and its log-prob there.

    Args:
        logits: (R, V) float32.
        uniforms: (R,) float64 in [0, 1).
        sampling: what is drawn from; at temperature 0 it is the argmax, with log-probs at temperature 1.
    Returns:
        (R,) int64, never a token of probability 0; (R,) float32, nats, NaN where the logits are not finite.
    """
    temperature = sampling.temperature
    if temperature and sampling.top_p < 1:
        floors = KeptSet(top_p=sampling.top_p).floors_of_logits(logits, temperature)
        logits = logits.masked_fill(logits / temperature < floors[:, None], -torch.inf)
    top = logits.amax(-1, keepdim=True)
    scaled = logits - top
    if temperature not in (0, 1):
        scaled /= temperature
    weights = scaled.exp_()
    size, vocab_size = CDF_BLOCK, logits.shape[-1]
    whole = vocab_size - vocab_size % size
    sums = torch.cat([weights[:, :whole].unflatten(-1, (-1, size)).sum(-1), weights[:, whole:].sum(-1, keepdim=True)], 1).double()
    cdf = sums.cumsum(-1)
    if temperature == 0:
        chosen = logits.argmax(-1, keepdim=True)
    else:
        point = uniforms[:, None] * cdf[:, -1:]
        block = _first_above(cdf, point)
        columns = block * size + torch.arange(min(size, vocab_size), device=logits.device)
        inside = weights.gather(-1, columns.clamp(max=vocab_size - 1)).double().masked_fill_(columns >= vocab_size, 0.0)
        chosen = block * size + _first_above(inside.cumsum(-1), (point - (cdf - sums).gather(-1, block)).clamp(min=0))
    logprobs = (logits.gather(-1, chosen) - top) / (temperature or 1.0) - cdf[:, -1:].log().float()
    return chosen.squeeze(-1), logprobs.squeeze(-1)


def _first_above(cdf: Tensor, point: Tensor) -> Tensor:
    """The first place (R, 1) of each row (R, n) whose value is above its point (R, 1); rounding may not carry the point to the end."""
    end = cdf[:, -1:]
    place = torch.searchsorted(cdf, torch.minimum(point, end.nextafter(torch.zeros_like(end))), right=True)
    return place.clamp_(max=cdf.shape[-1] - 1)  # only NaN gets there: its log-prob is NaN, which the caller reports
