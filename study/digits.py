"""A number of four significant digits as a whole one: its rank among all such numbers, which packs far better than its bits."""

from __future__ import annotations

from functools import cache

DIGITS = 4

_LEAST = -324
"""Exponent of the smallest number that is not 0."""

_A_DECADE = 9 * 10 ** (DIGITS - 1)
"""How many numbers of DIGITS digits lie from one power of ten to the next."""


def rounded(value: float) -> float:
    """Return a number rounded to DIGITS significant digits."""
    return float(f"{value:.{DIGITS}g}")


def rank(value: float) -> int:
    """Return the rank of a finite number among those of DIGITS digits: 0 has rank 0, and what lies between two is rounded."""
    if value == 0:
        return 0
    digits, exponent = f"{abs(value):.{DIGITS - 1}e}".split("e")
    found = (int(exponent) - _LEAST) * _A_DECADE + int(digits.replace(".", "")) - 10 ** (DIGITS - 1) + 1
    return found if value > 0 else -found


@cache
def ranked(rank: int) -> float:
    """Return the number of a rank: `ranked(rank(x)) == rounded(x)`."""
    if rank == 0:
        return 0.0
    decades, digits = divmod(abs(rank) - 1, _A_DECADE)
    value = float(f"{digits + 10 ** (DIGITS - 1)}e{decades + _LEAST - DIGITS + 1}")
    return value if rank > 0 else -value
