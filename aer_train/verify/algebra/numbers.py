"""Bounded arithmetic: exact for rational numbers, else in mpmath's numbers at the working precision.

A number is a Fraction while that is exact and small enough to be cheap, else an mpf or mpc. What would take long is refused before it is
computed.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, TypeAlias

from mpmath import mp, mpc

Number: TypeAlias = Any
"""A Fraction, an mpf or an mpc; mpmath has no types."""

MAX_BITS = 1 << 16
"""Of an exact number."""

MAX_MAGNITUDE = 1 << 14
"""Of the exponent of two of any other number."""


class TooLarge(ArithmeticError):
    """An operation would take too long, or its result is larger than anything compared here."""


class TooMuch(TooLarge):
    """A comparison has had all the work it may take."""


def bits(x: Fraction) -> int:
    """Return the bits of numerator and denominator."""
    return x.numerator.bit_length() + x.denominator.bit_length()


def inexact(x: Number) -> Number:
    """Return a number at the working precision."""
    if not isinstance(x, Fraction):
        return x
    return mp.mpf(x.numerator) / x.denominator if x.denominator != 1 else mp.mpf(x.numerator)


def magnitude(x: Number) -> int:
    """Return about log2 |x|; 0 for 0."""
    if isinstance(x, Fraction):
        return x.numerator.bit_length() - x.denominator.bit_length() if x else 0
    return int(mp.mag(x)) if x and mp.isfinite(x) else 0


def checked(x: Number) -> Number:
    """Return the number, unless it is too large or none.

    Raises:
        TooLarge; ZeroDivisionError - it is infinite or undefined.
    """
    if isinstance(x, Fraction):
        if bits(x) > MAX_BITS:
            raise TooLarge
        return x
    if not mp.isfinite(x):
        raise ZeroDivisionError
    if isinstance(x, mpc):  # what rounding left of a part is no part
        if vanishes(x.imag, magnitude(x.real)):
            x = x.real
        elif vanishes(x.real, magnitude(x.imag)):
            x = mp.mpc(0, x.imag)
    if abs(magnitude(x)) > MAX_MAGNITUDE:
        raise TooLarge
    return x


def add(a: Number, b: Number) -> Number:
    """Return a + b; exactly 0 where nothing is left of half the working digits."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return checked(a + b)
    x, y = inexact(a), inexact(b)
    total = x + y
    return Fraction(0) if vanishes(total, max(magnitude(x), magnitude(y))) else checked(total)


def vanishes(x: Number, scale: int) -> bool:
    """Whether a number is only what rounding left of numbers of the size 2^scale."""
    return not x or (bool(mp.isfinite(x)) and magnitude(x) < scale - mp.prec // 2)


def multiply(a: Number, b: Number) -> Number:
    """Return a times b, exactly where both are rational."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return checked(a * b)
    if a == 0 or b == 0:
        return Fraction(0)
    return checked(inexact(a) * inexact(b))


def negated(x: Number) -> Number:
    """Return -x."""
    return multiply(Fraction(-1), x)


def divide(a: Number, b: Number) -> Number:
    """Return a / b; ZeroDivisionError where b is 0."""
    if b == 0:
        raise ZeroDivisionError
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return checked(a / b)
    return Fraction(0) if a == 0 else checked(inexact(a) / inexact(b))


def power(base: Number, exponent: Number) -> Number:
    """Return base^exponent, its principal value; exact where it is rational."""
    if isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            return _whole_power(base, exponent.numerator)
        if isinstance(base, Fraction) and base >= 0 and exponent.denominator <= 64:
            found = _exact_root(base, exponent.denominator)
            if found is not None:
                return _whole_power(found, exponent.numerator)
    if base == 0:
        if (exponent if isinstance(exponent, Fraction) else mp.re(exponent)) > 0:
            return Fraction(0)
        raise ZeroDivisionError
    x, y = inexact(base), inexact(exponent)
    if magnitude(y) + max(1, abs(magnitude(x))).bit_length() > MAX_MAGNITUDE.bit_length() + 1:
        raise TooLarge
    return checked(mp.power(x, y))


def _whole_power(base: Number, exponent: int) -> Number:
    if isinstance(base, Fraction):
        if base == 0 and exponent < 0:
            raise ZeroDivisionError
        if base in (0, 1, -1):
            return base ** (exponent % 2 + 2 if exponent else 0)
        if bits(base) * abs(exponent) <= MAX_BITS + bits(base):
            return checked(base**exponent)
    if abs(magnitude(base)) * abs(exponent) > MAX_MAGNITUDE or abs(exponent) > 1 << 40:
        raise TooLarge
    return checked(mp.power(inexact(base), exponent))


def root(x: Number, index: Number) -> Number:
    """The root that schools teach: real for an odd index of a negative number, else the principal value."""
    if index == 0:
        raise ZeroDivisionError
    real = not isinstance(x, mpc)
    if real and x < 0 and isinstance(index, Fraction) and index.denominator == 1 and index.numerator % 2:
        return negated(root(negated(x), index))
    return power(x, divide(Fraction(1), index))


def _exact_root(x: Fraction, index: int) -> Fraction | None:
    top, bottom = _whole_root(x.numerator, index), _whole_root(x.denominator, index)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _whole_root(n: int, index: int) -> int | None:
    if n < 2:
        return n
    if index == 2:
        found = math.isqrt(n)
    else:
        found = 1 << -(-n.bit_length() // index)
        while True:  # Newton's iteration from above
            better = ((index - 1) * found + n // found ** (index - 1)) // index
            if better >= found:
                break
            found = better
    return found if found**index == n else None
