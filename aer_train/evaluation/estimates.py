"""Estimates from n sampled responses to each problem: pass@k and majority@k for every k <= n, and bootstrap intervals over problems.

Both are exact averages over all C(n, k) ways to keep k of the n responses, hence unbiased for k fresh responses. Every measure is a mean
over problems of a number that one problem gives, so resampling problems is a product of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

CURVES = ("pass@k", "majority@k")

RESAMPLES = 10_000
"""Bootstrap resamples: the ends of a 95 % interval move by about 2 % of its width from seed to seed."""

LEVEL = 0.95
"""Coverage of the intervals."""

BLOCK = 4_000_000
"""Problems drawn at once: memory only."""

Array = np.ndarray


def pass_at_k(samples: int, correct: Sequence[int]) -> Array:
    """Return the unbiased estimate of the chance that at least one of k responses is correct.

        1 - C(samples - correct, k) / C(samples, k)

    Args:
        samples: n responses to each problem.
        correct: how many of them were correct, for each of P problems.
    Returns:
        (P, n): column k - 1 is pass@k.
    Source: arXiv:2107.03374.
    """
    wrong = samples - np.asarray(correct)[:, None]
    taken = np.arange(samples)
    return 1.0 - np.cumprod(np.maximum(wrong - taken, 0) / (samples - taken), axis=1)


def majority_at_k(samples: int, votes: Sequence[tuple[int, int]]) -> Array:
    """Return the expected accuracy of the most frequent answer among k of a problem's responses.

    Ties are broken at random, with equal chances. A response without an answer has no vote; where nobody votes the answer is wrong. Where
    the responses of one answer were judged differently, their mean counts.

    Args:
        samples: n responses, of which those with an answer vote.
        votes: for each different answer (responses that gave it, how many of them were judged correct).
    Returns:
        (n,): place k - 1 is majority@k.
    """
    total = np.zeros(samples)
    for place, (count, correct) in enumerate(votes):
        if correct:
            rivals = sorted(other for i, (other, _) in enumerate(votes) if i != place)
            total += correct / count * _chance_to_win(samples, count, tuple(rivals))
    return total


@dataclass(frozen=True)
class Estimate:
    """Means over problems of M measures, and the same means over problems drawn with replacement."""

    value: Array
    """(M,)"""
    resampled: Array
    """(RESAMPLES, M)"""

    @classmethod
    def of(cls, values: Array, rng: np.random.Generator) -> Estimate:
        """Return the estimate from (P, M) numbers of P problems; `rng` draws the problems, the same ones for all measures."""
        problems = len(values)
        resampled = np.empty((RESAMPLES, values.shape[1]))
        block = max(1, BLOCK // problems)
        for start in range(0, RESAMPLES, block):
            size = min(block, RESAMPLES - start)
            drawn = rng.integers(problems, size=(size, problems)) + problems * np.arange(size)[:, None]
            times = np.bincount(drawn.ravel(), minlength=size * problems).reshape(size, problems)
            resampled[start : start + size] = times @ values / problems
        return cls(values.mean(0), resampled)

    @classmethod
    def mean(cls, estimates: Sequence[Estimate]) -> Estimate:
        """Return the mean of estimates from different problems, each counting the same."""
        return cls(np.mean([e.value for e in estimates], axis=0), np.mean([e.resampled for e in estimates], axis=0))


def interval(resampled: Array) -> Array:
    """Return the ends (2, M) of the percentile intervals of resampled means."""
    return np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)


def shown_ks(samples: int) -> list[int]:
    """Return the k that tables show: 1, 2, 4, ... and n itself."""
    return sorted({2**i for i in range(samples.bit_length())} | {samples})


@lru_cache(maxsize=4096)
def _chance_to_win(samples: int, count: int, rivals: tuple[int, ...]) -> Array:
    """Return the chance (n,) that an answer with `count` votes is chosen among k responses, k = 1 .. samples.

    It wins with m votes when each rival has at most m, and is chosen with 1 / (1 + t) when t of them have m as well. The ways to draw such
    k responses are coefficients of a polynomial, x for a response and y for a tie:

        C(count, m) x^m (1 + x)^silent prod_rivals (sum_{j < m} C(r, j) x^j + y C(r, m) x^m)

    All terms are positive, so nothing cancels; float64 holds them up to n = 1024.
    """
    ways = np.zeros(samples + 1)
    for m in range(1, count + 1):
        equal = [rival for rival in rivals if rival >= m]
        free = samples - count - sum(equal)  # silent responses, and those of rivals that cannot reach m
        poly = np.zeros((len(equal) + 1, samples + 1))
        poly[0, : free + 1] = _binomials(free)
        for rival in equal:
            coefficients = _binomials(rival)
            raised = np.zeros_like(poly)
            for j in range(m):
                raised[:, j:] += coefficients[j] * poly[:, : samples + 1 - j]
            raised[1:, m:] += coefficients[m] * poly[:-1, : samples + 1 - m]
            poly = raised
        chosen = poly.T @ (1.0 / np.arange(1, len(equal) + 2))
        ways[m:] += _binomials(count)[m] * chosen[: samples + 1 - m]
    return (ways / _binomials(samples))[1:]


@lru_cache(maxsize=2048)
def _binomials(n: int) -> Array:
    """C(n, 0), ..., C(n, n)."""
    k = np.arange(1, n + 1)
    return np.concatenate([[1.0], np.cumprod((n - k + 1) / k)])
