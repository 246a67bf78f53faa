"""Whether two expressions are equal, or a constant times each other: by their values.

Without symbols the difference decides: exactly for rational numbers, otherwise to so many digits that a difference as small as the
numbers in the expressions can make it would be seen. With symbols, the values at points of many sizes decide in the same way. Where the
gold expression is real at enough points only those count, so that branches of roots and logarithms outside its domain do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction

from mpmath import mp, mpc

from aer_train.verify.algebra.evaluate import Evaluation
from aer_train.verify.algebra.numbers import Number, TooLarge, TooMuch, add, divide, negated
from aer_train.verify.algebra.points import REAL_SIZES, SIGNED, points, special
from aer_train.verify.algebra.tree import Node, nodes

COMPARISON, ANSWER = 80_000.0, 400_000.0
"""About the microseconds that one comparison may take, and all of an answer's."""

POINTS = 8
"""A point may take this part of a comparison's time, else it is passed over."""

FIRST_BITS = 256
MAX_BITS = 14_000
"""Working precision."""

MAX_SCALE_BITS = 4_000
"""Working bits for the size of the values at a point; at a point that asks for more nothing is compared."""

CONSTANT_FACTOR, OTHER_FACTOR, LEAST_FACTOR = 8, 2, 2
"""Working bits for a bit by which numbers are large or small: differences of fourth order are seen (x - sin x is of third)."""

ENOUGH = 8
"""Points that must agree, and not in 0 = 0 only."""

FEW = 3
"""Points that do where more cannot be had."""


class Work:
    """What is left of the work that the comparisons of an answer may take together."""

    def __init__(self, left: float = ANSWER) -> None:
        self.left = left


def equal(answer: Node, gold: Node, work: Work) -> bool:
    """Whether an answer's expression equals the gold expression; what is too large to be known is not equal."""
    return answer == gold or _agree(answer, gold, work, _same_number)


def _same_number(a: Number, b: Number) -> bool:
    return add(a, negated(b)) == 0


def proportional(answer: Node, gold: Node, work: Work) -> int:
    """Whether an expression is a constant times another, neither of them 0 everywhere: 1 or -1 for the sign of the constant, else 0."""
    first: list[tuple[Number, int]] = []  # the ratio at the first point, and its precision

    def same_ratio(a: Number, g: Number) -> bool:
        if a == 0 or g == 0:
            return a == 0 and g == 0
        ratio = divide(a, g)
        first.append((ratio, mp.prec))
        mp.prec = min(mp.prec, first[0][1])
        return _same_number(ratio, first[0][0])

    if not _agree(answer, gold, work, same_ratio) or not first or isinstance(first[0][0], mpc):
        return 0
    return 1 if first[0][0] > 0 else -1


def constant(tree: Node, work: Work) -> Number | None:
    """The value of an expression without symbols; None when it has some, or no value that can be had."""
    if tree.symbols:
        return None
    try:
        return _Values(work, tree).at({})[0]
    except _NO_VALUE:
        return None


_NO_VALUE = (ArithmeticError, ValueError, mp.NoConvergence)
"""What evaluation raises where there is no value: TooLarge and ZeroDivisionError are arithmetic errors, the others come from mpmath."""


class _Values:
    """The values of several expressions at the same point, with one bound on the work for all points."""

    def __init__(self, work: Work, *trees: Node) -> None:
        self.work, self.trees, self.left = work, trees, COMPARISON

    def at(self, point: dict[str, Fraction]) -> list[Number]:
        """The values, to as many digits as they themselves ask for. Raises one of _NO_VALUE."""
        precision, share = FIRST_BITS, COMPARISON / POINTS if point else COMPARISON
        while True:
            mp.prec = precision
            evaluation = Evaluation(share)
            try:
                found = [evaluation.value(tree, point) for tree in self.trees]
            finally:
                spent, share = share - evaluation.left, evaluation.left
                self.left, self.work.left = self.left - spent, self.work.left - spent
                if min(self.left, self.work.left) < 0:
                    raise TooMuch
            hidden, scale = evaluation.constants, evaluation.others
            needed = 128 + CONSTANT_FACTOR * hidden + OTHER_FACTOR * scale
            if evaluation.exact or needed <= precision:
                return found
            if 128 + LEAST_FACTOR * (hidden + scale) > MAX_BITS or OTHER_FACTOR * scale > MAX_SCALE_BITS:
                raise TooLarge
            if precision == MAX_BITS:
                return found
            precision = min(MAX_BITS, max(needed, 2 * precision))


def _agree(answer: Node, gold: Node, work: Work, same: Callable[[Number, Number], bool]) -> bool:
    """Whether the values are the same wherever they tell something."""
    values = _Values(work, answer, gold)
    if not answer.symbols | gold.symbols:
        try:
            return same(*values.at({}))
        except _NO_VALUE:
            return False
    real = telling = 0
    elsewhere: list[bool] = []  # points at which the gold expression is not real
    for count, point in enumerate(points((answer, gold))):
        try:
            a, g = values.at(point)
            agree = same(a, g)
        except TooMuch:
            return False
        except _NO_VALUE:
            continue
        if isinstance(g, mpc):
            elsewhere.append(agree)
        elif not agree:
            return False
        else:
            real, telling = real + 1, telling + (g != 0)
        if telling == ENOUGH:
            return _agree_there(values, special((answer, gold)), same)
        if count == len(REAL_SIZES) and not real and elsewhere:
            break
    if telling >= FEW:
        return _agree_there(values, special((answer, gold)), same)
    if real >= ENOUGH and not telling:
        return not any(node.op in SIGNED for tree in (answer, gold) for node in nodes(tree))
    return all(elsewhere) and telling + len(elsewhere) >= FEW


def _agree_there(values: _Values, places: Iterable[dict[str, Fraction]], same: Callable[[Number, Number], bool]) -> bool:
    """Whether the values are the same at these points, as far as there are any."""
    for place in places:
        try:
            a, g = values.at(place)
            if not isinstance(g, mpc) and not same(a, g):
                return False
        except TooMuch:
            return False
        except _NO_VALUE:
            continue
    return True
