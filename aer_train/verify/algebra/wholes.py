"""Functions that are about whole numbers: rounding, remainders, factorials, binomials, common divisors."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from mpmath import mp, mpc

from aer_train.verify.algebra.numbers import (
    MAX_BITS,
    Number,
    TooLarge,
    add,
    checked,
    divide,
    inexact,
    magnitude,
    multiply,
    negated,
    vanishes,
)

MAX_FACTORIAL = 6_000
"""Its result has about 2^16 bits."""

GAMMA_BITS = 700
"""Working precision above which the gamma function takes too long."""


def whole(x: Number) -> int | None:
    """The integer that a number is, as far as its digits tell; None when it is none."""
    if isinstance(x, Fraction):
        return x.numerator if x.denominator == 1 else None
    if isinstance(x, mpc):
        return None
    nearest = int(mp.nint(x))
    return nearest if vanishes(x - nearest, max(magnitude(x), 1)) else None


def floor(x: Number) -> Number:
    """The largest integer that is at most x."""
    if isinstance(x, mpc):
        raise ZeroDivisionError
    found = whole(x)
    return Fraction(math.floor(x) if isinstance(x, Fraction) else int(mp.floor(x)) if found is None else found)


def _ceiling(x: Number) -> Number:
    return negated(floor(negated(x)))


def _remainder(a: Number, b: Number) -> Number:
    return add(a, negated(multiply(b, floor(divide(a, b)))))


def _factorial(x: Number) -> Number:
    n = whole(x)
    if n is None:
        return _gamma(add(x, Fraction(1)))
    if n < 0:
        raise ZeroDivisionError
    if n > MAX_FACTORIAL:
        raise TooLarge
    return checked(Fraction(math.factorial(n)))


def _double_factorial(x: Number) -> Number:
    n = whole(x)
    if n is None or n < -1:
        raise ZeroDivisionError
    if n > MAX_FACTORIAL:
        raise TooLarge
    return checked(Fraction(math.prod(range(n, 0, -2))))


def _gamma(x: Number) -> Number:
    if mp.prec > GAMMA_BITS or magnitude(x) > 12:
        raise TooLarge
    return checked(mp.gamma(inexact(x)))


def _binomial(a: Number, b: Number) -> Number:
    n, k = whole(a), whole(b)
    if k is None:
        raise ZeroDivisionError
    if k < 0 or (n is not None and 0 <= n < k):
        return Fraction(0)
    if n is not None and n >= 0:
        k = min(k, n - k)
        if k * max(1, n.bit_length() - k.bit_length() + 2) > MAX_BITS:
            raise TooLarge
        return checked(Fraction(math.comb(n, k)))
    if k > 200:
        raise TooLarge
    found: Number = Fraction(1)
    for j in range(k):
        found = divide(multiply(found, add(a, Fraction(-j))), Fraction(j + 1))
    return found


def _of_wholes(function: Callable[..., int]) -> Callable[..., Number]:
    def apply(*xs: Number) -> Number:
        found = [whole(x) for x in xs]
        if None in found:
            raise ZeroDivisionError
        return checked(Fraction(function(*found)))

    return apply


WHOLE_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "floor": floor,
    "ceil": _ceiling,
    "mod": _remainder,
    "factorial": _factorial,
    "factorial2": _double_factorial,
    "binomial": _binomial,
    "gcd": _of_wholes(math.gcd),
    "lcm": _of_wholes(math.lcm),
}
"""Operations -> what computes them."""
