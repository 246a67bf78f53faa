"""Student's t: means with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import mpmath

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with the half-width of its interval; NaN from a single value."""

    mean: float
    half_width: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        return abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values with Student's t interval at LEVEL.

    Args:
        values: at least one.
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Estimate(mean, math.nan, count)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    error = deviation / math.sqrt(count)
    return Estimate(mean, t_quantile(0.5 + LEVEL / 2, count - 1) * error, count)


def t_cdf(t: float, freedom: int) -> float:
    """Distribution function of Student's t for t >= 0."""
    return 1 - float(mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)) / 2


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t for a probability above 1/2."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return high
