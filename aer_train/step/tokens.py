"""The loss tokens of a step, flat, and what a method says each of them is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from aer_kernels.integrations.control import flat_batch
from aer_kernels.methods import Method, TokenBatch, TokenTerms
from aer_kernels.methods.asking import ask
from aer_train.seeds import sample_seed
from aer_train.types import Batch, Sample


@dataclass(frozen=True)
class Layout:
    """Where the tokens of each trained sample stand among the loss tokens of a step: sample after sample."""

    rows: list[int]
    """The trained samples, by their number in the batch."""
    slices: dict[int, slice]
    """The tokens of each."""
    size: int
    """N."""

    @staticmethod
    def of(batch: Batch) -> Layout:
        rows = [row for row, trained in enumerate(batch.trained) if trained]
        bounds = list(accumulate((len(batch.samples[row].tokens) for row in rows), initial=0))
        return Layout(rows, {row: slice(*pair) for row, pair in zip(rows, pairwise(bounds), strict=True)}, bounds[-1])


@dataclass(frozen=True)
class Weighed:
    """A batch with the worth of each of its loss tokens."""

    batch: Batch
    layout: Layout
    tokens: TokenBatch
    terms: TokenTerms
    reference: np.ndarray | None = None
    """(N,) log-probs of the policy that a KL penalty pulls towards, nats; None without a penalty."""

    @property
    def samples(self) -> list[Sample]:
        return self.batch.samples

    def column(self, values: Tensor | None, default: float) -> np.ndarray:
        """A number of each token, (N,) float32."""
        return np.full(self.layout.size, default, np.float32) if values is None else values.float().numpy()

    def advantages(self) -> np.ndarray:
        """(N,) with the method's shift."""
        shift = self.terms.shift
        return (self.tokens.advantages if shift is None else self.tokens.advantages + shift).numpy()

    def entropy_coef(self) -> np.ndarray:
        """(N,) of each sample's tokens, as the loss has them."""
        return np.float32(self.terms.entropy_scale) * self.column(self.terms.entropy_coef, 0.0)

    def reweighted(self) -> float | None:
        """Return the share of the loss tokens whose policy term the method changes; None where it changes none of any update."""
        terms, changed = self.terms, np.zeros(self.layout.size, bool)
        neutral = [(terms.weight, 1.0), (terms.shift, 0.0), (terms.divergence_coef, 0.0)]
        given = [(values, value) for values, value in neutral if values is not None]
        for values, value in given:
            changed |= values.numpy() != value
        return float(changed.mean()) if given and changed.size else None

    def has_signal(self) -> list[bool]:
        """Return which samples have a gradient: a token with an advantage that counts, an entropy coefficient or a divergence, or a
        statistic with a coefficient. With a KL penalty all that are trained do."""
        if self.reference is not None:
            return [row in self.layout.slices for row in range(len(self.samples))]
        signal = self.column(self.terms.weight, 1.0) * self.advantages()
        parts = (signal, self.entropy_coef(), self.column(self.terms.divergence_coef, 0.0))
        found, statistic = np.logical_or.reduce([part != 0 for part in parts]), self.terms.statistic_coef
        counts = {row for row, place in self.layout.slices.items() if found[place].any() or (statistic is not None and statistic[row] != 0)}
        return [row in counts for row in range(len(self.samples))]


def token_batch(batch: Batch, seed: Sequence[int | str], decode: Callable[[int], str] | None = None) -> TokenBatch:
    """Return the loss tokens of a batch, with the log-probs that were recorded when they were sampled.

    Args:
        seed: names the random choices of the method.
        decode: gives the text of a token, for methods that read it.
    """
    layout = Layout.of(batch)
    lengths = torch.tensor([len(batch.samples[row].tokens) for row in layout.rows], dtype=torch.int64)
    response = torch.tensor(layout.rows, dtype=torch.int64).repeat_interleave(lengths)
    owners = [place for place, group in enumerate(batch.groups) for _ in group.samples]
    starts = torch.tensor([layout.slices[row].start for row in layout.rows], dtype=torch.int64)
    rewards = [accuracy for group in batch.groups for accuracy in group.accuracies]
    return flat_batch(
        response,
        torch.arange(layout.size) - starts.repeat_interleave(lengths),
        torch.tensor(owners, dtype=torch.int64),
        torch.tensor(batch.accuracy),
        logprobs=torch.from_numpy(recorded_logprobs(batch.samples, layout)),
        advantages=advantages_of(batch, response),
        rewards=torch.tensor(rewards) if len(rewards) == len(owners) else None,  # None: nothing was verified
        seed=sample_seed(*seed) >> 1,  # torch's seeds have 63 bits
        text=None if decode is None else [decode(token) for row in layout.rows for token in batch.samples[row].tokens],
    )


def advantages_of(batch: Batch, response: Tensor) -> Tensor:
    """Return the advantage of each loss token by the response (N,) that it is of, (N,) float32."""
    return torch.tensor(batch.advantages)[response]


def recorded_logprobs(samples: Sequence[Sample], layout: Layout) -> np.ndarray:
    """Return the log-probs of all loss tokens as they were recorded at sampling, (N,) float32, nats."""
    found = np.zeros(layout.size, np.float32)
    for row, place in layout.slices.items():
        found[place] = samples[row].logprobs
    return found


def weigh(batch: Batch, tokens: TokenBatch, method: Method) -> Weighed:
    """Ask the method what each token is worth.

    Raises:
        ValueError - its answer is not a finite number a token.
    """
    return Weighed(batch, Layout.of(batch), tokens, ask(method, tokens))
