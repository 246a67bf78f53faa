"""Where two expressions are compared: numbers of many sizes for every symbol, whole ones for symbols that count something."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from fractions import Fraction

from aer_train.verify.algebra.tree import Node, nodes

SIGNED = {"abs", "sgn", "max", "min", "floor", "ceil", "mod"}
"""Operations that are about the sign or the size of a number: points are negative as well."""

STEPPED = {"floor", "ceil", "mod", "gcd", "lcm"}
COUNTED = ("factorial", "factorial2", "binomial")
COUNTING = set("ijklmnKMN")
"""Symbols that are whole numbers inside of floor, ceiling, remainder and their kin."""

REAL_SIZES = ((0.05, 0.4), (0.1, 0.5), (0.2, 0.9), (50, 400), (1, 6), (1e11, 1e13), (1e3, 1e5), (5, 40), (0.5, 1), (1e6, 1e8), (1, 3))
WHOLE_SIZES = ((1, 4), (2, 9), (3, 12), (100, 999), (5, 30), (1e12, 1e13), (1e4, 1e5), (20, 90), (5, 60), (1e6, 1e8), (1e15, 1e16))
COUNTED_SIZES = ((1, 4), (2, 7), (3, 12), (5, 15), (8, 30), (0, 9), (20, 90), (50, 200), (1, 2), (100, 400), (2, 20))
"""Of arguments of factorials, whose values grow fast."""

DENOMINATOR = 1009
FAR_BITS = (64, 300, 1_500, 7_000, 30_000)
MOST_NUMBERS = 8
ROUNDS = 3
"""Times that all sizes are gone through."""


def points(trees: tuple[Node, ...]) -> Iterator[dict[str, Fraction]]:
    """Points at which expressions with symbols can be told apart; the same ones at every call."""
    names = sorted(frozenset[str]().union(*(tree.symbols for tree in trees)))
    found = [node for tree in trees for node in nodes(tree)]
    signed = any(node.op in SIGNED for node in found)
    whole, counted = _whole(found), _under(found, COUNTED)
    for turn in range(ROUNDS):
        for size in range(len(REAL_SIZES)):
            drawn = random.Random(f"{turn} {size}")
            mixed = size % 4 == 3 and len(names) > 1  # symbols of different sizes
            point = {}
            for name in names:
                place = drawn.randrange(len(REAL_SIZES)) if mixed else size
                if name in counted:
                    value = Fraction(drawn.randint(*map(int, COUNTED_SIZES[place])))
                elif name in whole:
                    value = Fraction(drawn.randint(*map(int, WHOLE_SIZES[place])))
                else:
                    low, high = REAL_SIZES[place]
                    value = Fraction(drawn.randint(int(low * DENOMINATOR), int(high * DENOMINATOR)), DENOMINATOR)
                point[name] = -value if signed and name not in counted and drawn.random() < 0.5 else value
            yield point


def special(trees: tuple[Node, ...]) -> Iterator[dict[str, Fraction]]:
    """Points for expressions in steps and pieces: far out, and at the numbers in them."""
    found = [node for tree in trees for node in nodes(tree)]
    if not any(node.op in SIGNED for node in found):
        return
    names = frozenset[str]().union(*(tree.symbols for tree in trees))
    whole = _whole(found) | _under(found, COUNTED)
    numbers = list(dict.fromkeys(number for node in found for number in _numbers(node)))[:MOST_NUMBERS]
    for place in [*numbers, *(number + Fraction(1, 1 << 20) for number in numbers), *(Fraction(3 << bits) for bits in FAR_BITS)]:
        for value in (place, -place):
            yield {name: Fraction(math.ceil(value)) if name in whole else value for name in names}


def _numbers(node: Node) -> list[Fraction]:
    """The number that a node is as it is written: 7, 7/3."""
    if isinstance(node.value, Fraction):
        return [node.value]
    parts = [arg.value for arg in node.args if isinstance(arg.value, Fraction)]
    return [parts[0] / parts[1]] if node.op == "div" and len(parts) == 2 and parts[1] else []


def _whole(found: list[Node]) -> set[str]:
    """Symbols that are whole numbers: powers of what may be negative, bounds of sums, and letters that count in steps."""
    names = {name for name in _under(found, tuple(STEPPED)) if name in COUNTING}
    for node in found:
        if node.op == "pow" and not node.args[0].symbols and any(part.op == "neg" for part in nodes(node.args[0])):
            names |= node.args[1].symbols
        if node.op in ("sum", "prod"):
            names |= node.args[0].symbols | node.args[1].symbols
    return names


def _under(found: list[Node], ops: tuple[str, ...]) -> set[str]:
    return set().union(*(node.symbols for node in found if node.op in ops))
