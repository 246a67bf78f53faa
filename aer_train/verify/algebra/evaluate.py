"""The value of an expression at a point, and how small the differences are that can hide in it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import reduce

from mpmath import mp, mpc

from aer_train.verify.algebra.functions import FUNCTIONS, unknown
from aer_train.verify.algebra.numbers import Number, TooLarge, add, bits, divide, inexact, magnitude, multiply, negated, power, root
from aer_train.verify.algebra.series import integral, series
from aer_train.verify.algebra.tree import Node

FREE_BITS = 24
"""Digits that any number has: they tell of no difference that is hidden."""


class Evaluation:
    """Evaluates trees at the working precision and adds up what that costs."""

    def __init__(self, budget: float) -> None:
        """
        Args:
            budget: about the microseconds that evaluation may take.
        """
        self.left = budget
        self.constants = 0
        """Bits by which values of parts without a symbol are large or small; digits of exact numbers among them."""
        self.others = 0
        """The same of parts with symbols."""
        self.exact = True
        """Whether no value was rounded."""

    def value(self, tree: Node, point: dict[str, Fraction]) -> Number:
        """Evaluate.

        Raises:
            TooLarge - it takes too long, or is too large; ZeroDivisionError - it is not defined there.
        """
        found = self._value(tree, point)
        exact = isinstance(found, Fraction)
        self.exact &= exact
        self.spend(found, tree.op in _SLOW)
        size = max(0, abs(magnitude(found)) - FREE_BITS)
        if not tree.symbols:
            self.constants += max(size, bits(found) - FREE_BITS if exact else 0)
        else:
            self.others += size
        return found

    def spend(self, found: Number, slow: bool = False) -> None:
        """Take what a result has cost off the budget."""
        if isinstance(found, Fraction):
            self.left -= 8 + bits(found) ** 2 / 4_000_000
        else:
            cost = 8 + mp.prec / 64 + (30 + mp.prec**2 / 16_000 if slow else 0)
            self.left -= 4 * cost if isinstance(found, mpc) else cost
        if self.left < 0:
            raise TooLarge

    def _value(self, tree: Node, point: dict[str, Fraction]) -> Number:
        op = tree.op
        if op == "number":
            return tree.value
        if op == "symbol":
            return point[str(tree.value)]
        if op == "constant":
            return self._constant(str(tree.value))
        if op in ("sum", "prod"):
            return series(self, tree, point)
        if op == "integral":
            return integral(self, tree, point)
        if op == "pow":
            return self._power(tree, point)
        args = [self.value(arg, point) for arg in tree.args]
        if op in ("add", "mul"):
            return reduce(add if op == "add" else multiply, args)
        if op == "apply":
            self.exact = False
            return unknown(str(tree.value), *args)
        if op in ("tanh", "coth"):  # 1 but for e^(-2x)
            self.constants += int(min(3 * abs(inexact(args[0])), 1 << 20))
        return _OPERATIONS[op](*args)

    @staticmethod
    def _constant(name: str) -> Number:
        if name == "infty":
            raise ZeroDivisionError
        return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1)}[name]

    def _power(self, tree: Node, point: dict[str, Fraction]) -> Number:
        base, exponent = (self.value(arg, point) for arg in tree.args)
        if isinstance(exponent, Fraction) and exponent.denominator % 2 and exponent.denominator > 1 and not tree.args[1].symbols:
            return power(root(base, Fraction(exponent.denominator)), Fraction(exponent.numerator))  # (-8)^{1/3} is -2
        return power(base, exponent)

    def part(self, body: Node, point: dict[str, Fraction]) -> Number:
        """A term or factor of many: their sizes count once, not one by one."""
        constants, others = self.constants, self.others
        found = self.value(body, point)
        self.constants, self.others = max(constants, self.constants - constants), max(others, self.others - others)
        return found


_SLOW = {"constant", "pow", "root", *FUNCTIONS} - {"abs", "sgn", "floor", "ceil", "mod", "max", "min", "gcd", "lcm"}
_OPERATIONS: dict[str, Callable[..., Number]] = {
    **FUNCTIONS,
    "div": divide,
    "neg": negated,
    "root": root,
    "degrees": lambda x: multiply(x, divide(+mp.pi, Fraction(180))),
}
