"""The functions of one or more numbers: elementary ones, and unknown ones of which only the name is known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from fractions import Fraction

from mpmath import mp, mpc

from aer_train.verify.algebra.numbers import Number, TooLarge, add, checked, divide, inexact, magnitude, negated, vanishes
from aer_train.verify.algebra.wholes import WHOLE_FUNCTIONS


def _absolute(x: Number) -> Number:
    return abs(x)


def _sign(x: Number) -> Number:
    return Fraction((x > 0) - (x < 0)) if not isinstance(x, mpc) else divide(x, abs(x))


def _extreme(sign: int) -> Callable[..., Number]:
    def choose(*xs: Number) -> Number:
        if any(isinstance(x, mpc) for x in xs):
            raise ZeroDivisionError
        best = xs[0]
        for x in xs[1:]:
            difference = add(x, negated(best))
            if sign * difference > 0:
                best = x
        return best

    return choose


def logarithm(x: Number, base: Number) -> Number:
    """Return the logarithm of x to a base; ZeroDivisionError where there is none."""
    if x == 0 or base in (0, 1):
        raise ZeroDivisionError
    return divide(_natural(x), _natural(base))


def _natural(x: Number) -> Number:
    if x == 1:
        return Fraction(0)
    found = mp.log(inexact(x))
    if not isinstance(x, Fraction) and vanishes(found, 0):
        return Fraction(0)
    return checked(found)


def _numeric(name: str, zero: Fraction | None = None) -> Callable[[Number], Number]:
    """A function of mpmath, and its value at 0. At a zero of sin and its kin, what is much smaller than the argument is rounding."""
    function, crosses = getattr(mp, name), name in ("sin", "cos", "tan", "cot", "acos")

    def apply(x: Number) -> Number:
        if x == 0 and zero is not None:
            return zero
        if magnitude(x) > 256:  # its angle has no digits
            raise TooLarge
        found = function(inexact(x))
        return Fraction(0) if crosses and not isinstance(x, Fraction) and vanishes(found, magnitude(x)) else checked(found)

    return apply


def unknown(name: str, *xs: Number) -> Number:
    """A value of a function of which only the name is known: the same for the same arguments, and for nothing else."""
    text = name + "".join(f" {mp.nstr(mp.mpc(inexact(x)), mp.dps // 2)}" for x in xs)
    return weight(text)


def weight(text: str) -> Fraction:
    """A number between 1 and 2 that stands for a text."""
    return 1 + Fraction(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"), 1 << 64)


_ODD = ("sin", "tan", "asin", "atan", "sinh", "tanh", "asinh", "atanh")
FUNCTIONS: dict[str, Callable[..., Number]] = {
    **WHOLE_FUNCTIONS,
    **{name: _numeric(name, Fraction(0)) for name in _ODD},
    **{name: _numeric(name, Fraction(1)) for name in ("cos", "sec", "cosh", "sech")},
    **{name: _numeric(name) for name in ("cot", "csc", "coth", "csch", "acos", "acot", "asec", "acsc", "acosh", "acoth", "asech", "acsch")},
    "abs": _absolute,
    "sgn": _sign,
    "max": _extreme(1),
    "min": _extreme(-1),
    "log": logarithm,
}
"""Operations -> what computes them."""
