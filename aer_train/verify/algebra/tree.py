"""What an expression is: a tree of operations over numbers and symbols."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction


class Unreadable(ValueError):
    """A text is no mathematics that is known here."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of an expression, with what it is applied to."""

    op: str
    """number, symbol, constant (pi, e, i, infty), add, mul, div, neg, pow, root (radicand, index), apply (an unknown function),
    sum, prod and integral (lower, upper, body), or the name of a function."""
    args: tuple[Node, ...] = ()
    value: Fraction | str | None = None
    """Of a number; the name of a symbol, a constant, an unknown function, or the variable that is bound."""
    symbols: frozenset[str] = field(init=False, compare=False, repr=False)
    """Names of the symbols that are free in it."""

    def __post_init__(self) -> None:
        found = frozenset[str]().union(*(arg.symbols for arg in self.args))
        if self.op == "symbol":
            found = frozenset({str(self.value)})
        elif self.op in ("sum", "prod", "integral"):
            lower, upper, body = self.args
            found = lower.symbols | upper.symbols | (body.symbols - {str(self.value)})
        object.__setattr__(self, "symbols", found)


def number(value: int | Fraction) -> Node:
    """Return the node of an exact number."""
    return Node("number", (), Fraction(value))


def nodes(tree: Node) -> Iterator[Node]:
    """All nodes of a tree, from the root down."""
    yield tree
    for arg in tree.args:
        yield from nodes(arg)
