"""Sums, products and integrals: added up where they are finite or converge fast, else a number that stands for them.

What stands for a slow series or an integral is a weighted sum of a few terms, or of values of the integrand: it is linear, the same for
the same bounds and terms, and another one for others.
"""

from __future__ import annotations

from fractions import Fraction
from functools import reduce
from typing import Protocol

from mpmath import mp

from aer_train.verify.algebra.functions import weight
from aer_train.verify.algebra.numbers import Number, TooLarge, add, inexact, magnitude, multiply, negated
from aer_train.verify.algebra.tree import Node
from aer_train.verify.algebra.wholes import whole

MAX_TERMS = 2_000
"""Of a finite sum or product."""

SERIES_TERMS = 600
"""In which an infinite series must converge to the working precision."""

SAMPLED = (0, 1, 2, 3, 5, 13, 41, 200)
"""Indices of the terms that stand for a series."""

PLACES = 4
"""Places at which an integrand is evaluated."""

INFINITY = Node("constant", (), "infty")


class Evaluator(Protocol):
    """Evaluates parts, and adds up what that costs; `evaluate.Evaluation` is one."""

    constants: int
    others: int
    exact: bool

    def value(self, tree: Node, point: dict[str, Fraction]) -> Number: ...

    def part(self, tree: Node, point: dict[str, Fraction]) -> Number: ...

    def spend(self, found: Number, slow: bool = False) -> None: ...


def series(evaluation: Evaluator, tree: Node, point: dict[str, Fraction]) -> Number:
    """Return the value of a sum or product."""
    lower, upper, body = tree.args
    join, name = (add if tree.op == "sum" else multiply), str(tree.value)
    start = evaluation.value(lower, point)
    if not isinstance(start, Fraction):
        raise ZeroDivisionError
    if upper == INFINITY:
        return _infinite(evaluation, tree, start, point)
    count = whole(add(evaluation.value(upper, point), -start))
    if count is None or count < -1:
        raise ZeroDivisionError
    if count > MAX_TERMS:
        raise TooLarge
    found: Number = Fraction(tree.op == "prod")
    for index in range(count + 1):
        found = join(found, evaluation.part(body, {**point, name: start + index}))
        evaluation.spend(found)
    return found


def _infinite(evaluation: Evaluator, tree: Node, start: Fraction, point: dict[str, Fraction]) -> Number:
    evaluation.exact = False
    if tree.op == "sum" and not tree.symbols:
        constants, others = evaluation.constants, evaluation.others
        found = _converged(evaluation, tree, start)
        if found is not None:
            evaluation.constants, evaluation.others = constants, others
            return found
    terms = [evaluation.part(tree.args[2], {**point, str(tree.value): start + index}) for index in SAMPLED]
    return reduce(add, [multiply(weight(f"{tree.op} {i}"), term) for i, term in zip(SAMPLED, terms, strict=True)])


def _converged(evaluation: Evaluator, tree: Node, start: Fraction) -> Number | None:
    """The sum of terms that become smaller than the last digit soon; None when they do not."""
    total, small, last = mp.mpf(0), 0, mp.inf
    for index in range(SERIES_TERMS):
        term = evaluation.part(tree.args[2], {str(tree.value): start + index})
        if not term:
            continue
        total += inexact(term)
        size = magnitude(term)
        if index > 8 and size > last + 8:
            return None
        small, last = small + 1 if size < magnitude(total) - mp.prec - 8 else 0, size
        if small == 4:
            return total
    return None


def integral(evaluation: Evaluator, tree: Node, point: dict[str, Fraction]) -> Number:
    """Return what stands for an integral. It is not computed."""
    lower, upper = (evaluation.value(arg, point) for arg in tree.args[:2])
    width = add(upper, negated(lower))
    found: list[Number] = []
    for i in range(PLACES):
        place = add(lower, multiply(width, weight(f"place {i}") - 1))
        if not isinstance(place, Fraction):
            place = Fraction(str(mp.nstr(mp.re(place), 20)))
        found.append(multiply(weight(f"integral {i}"), evaluation.part(tree.args[2], {**point, str(tree.value): place})))
    return multiply(width or Fraction(1), reduce(add, found))
