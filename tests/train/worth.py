"""What tests say that samples are worth: a number a sample, given to each of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

from aer_kernels.methods import TokenTerms
from aer_train.step.batching import Columns
from aer_train.step.tokens import Layout, Weighed, token_batch
from aer_train.types import Batch, Group, Sample


def of_tokens(samples: Sequence[Sample], values: Sequence[float]) -> np.ndarray:
    """A number of each sample for each of its tokens."""
    return np.concatenate([np.full(len(s.tokens), v, np.float32) for s, v in zip(samples, values, strict=True)])


def columns(
    samples: Sequence[Sample], advantages: Sequence[float], coef: Sequence[float], old_logprobs: Sequence[Sequence[float]] | None = None
) -> Columns:
    ends = list(accumulate(len(sample.tokens) for sample in samples))
    slices = {row: slice(end - len(samples[row].tokens), end) for row, end in enumerate(ends)}
    old = None if old_logprobs is None else np.concatenate([np.asarray(values, np.float32) for values in old_logprobs])
    return Columns(slices, of_tokens(samples, advantages), of_tokens(samples, coef), old_logprobs=old)


def weighed(
    groups: list[Group],
    advantages: Sequence[float],
    coef: Sequence[float],
    *,
    trained: Sequence[bool] | None = None,
    held: Sequence[float] | None = None,
    scale: float = 1.0,
) -> Weighed:
    """coef is at an entropy_scale of 1."""
    samples = [sample for group in groups for sample in group.samples]
    kept = [True] * len(samples) if trained is None else list(trained)
    batch = Batch(groups, [0.0] * len(samples), list(advantages), kept, [0.0] * len(groups))
    used = [row for row, keep in enumerate(kept) if keep]

    def column(values: Sequence[float] | None) -> torch.Tensor | None:
        if values is None:
            return None
        return torch.from_numpy(of_tokens([samples[row] for row in used], [values[row] for row in used])) if used else torch.zeros(0)

    terms = TokenTerms(entropy_coef=column(coef), entropy_scale=scale, held=column(held))
    return Weighed(batch, Layout.of(batch), token_batch(batch, (0,)), terms)
