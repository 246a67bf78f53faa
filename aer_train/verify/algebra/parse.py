r"""Reading an expression: sums of products of powers, with juxtaposition as a product.

2\binom{5}{2} is 20 and 2(\frac13) is \frac23: only a whole number before a proper fraction of digits is a mixed number. Products and
quotients run from left to right (1/2x is x/2). Two bare numbers side by side are nothing.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from aer_train.verify.algebra import notation
from aer_train.verify.algebra.tokens import Token, tokens
from aer_train.verify.algebra.tree import Node, Unreadable, number

MAX_DEPTH = 60
"""Brackets, fractions and functions within one another."""

CLOSING = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}
_ENDS = {
    ")", "]", "}", r"\}", ",", "end", "=", "<", ">", ":", "&",
    r"\choose", r"\over", r"\rfloor", r"\rceil", r"\bmod", r"\mod", r"\pmod",
}  # fmt: skip
"""What no factor begins with."""


@lru_cache(maxsize=2_000)
def parse(text: str) -> Node:
    """Read the expression that a cleaned text is.

    Raises:
        Unreadable - it is none.
    """
    reader = Parser(tokens(text))
    tree = reader.expression()
    reader.expect("end")
    return tree


class Parser:
    """A position in a list of tokens."""

    def __init__(self, found: list[Token]) -> None:
        self.tokens, self.position = found, 0
        self.depth = self.bars = 0
        self.bound: list[str] = []
        """Variables of the sums and integrals around this place."""
        self.in_angle = False
        """Whether degrees are an angle here: inside a trigonometric function."""

    @property
    def next(self) -> Token:
        """The token to come."""
        return self.tokens[self.position]

    def at(self, *texts: str) -> bool:
        """Whether the token to come is one of these signs or commands."""
        return self.next.text in texts

    def take(self, *texts: str) -> Token | None:
        """The token to come, taken if it is one of these signs or commands."""
        if not self.at(*texts):
            return None
        self.position += 1
        return self.tokens[self.position - 1]

    def expect(self, text: str) -> None:
        """Take this sign, or raise Unreadable."""
        if not self.take(text):
            raise Unreadable(f"{text} must come, got {self.next.text!r}")

    def expression(self) -> Node:
        """A sum; a mod b; {n \\choose k}."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("brackets too deep")
        tree = self._sum()
        while sign := self.take(r"\bmod", r"\mod", r"\pmod"):
            modulus = self.product()
            tree = Node("mod", (tree, modulus))
            if sign.text == r"\pmod":  # a class of numbers, and no number
                tree = Node("apply", (tree, modulus), "pmod")
        if split := self.take(r"\choose", r"\over"):
            tree = Node("binomial" if split.text == r"\choose" else "div", (tree, self._sum()))
        self.depth -= 1
        return tree

    def _sum(self) -> Node:
        terms = [self._term()]
        while sign := self.take("+", "-"):
            term = self._term()
            terms.append(term if sign.text == "+" else Node("neg", (term,)))
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def _term(self) -> Node:
        """A product with its signs; the sign is outside of powers: -x^2 is -(x^2)."""
        negative = False
        while sign := self.take("+", "-"):
            negative ^= sign.text == "-"
        product = self.product()
        return Node("neg", (product,)) if negative else product

    def product(self) -> Node:
        """Factors, multiplied and divided from left to right."""
        factors = [self.signed_factor()]
        while True:
            if self.take("*"):
                factors.append(self.signed_factor())
            elif self.take("/"):
                factors = [Node("div", (_product(factors), self.signed_factor()))]
            elif self.starts_factor():
                factors.append(self.factor())
            else:
                return _product(factors)

    def signed_factor(self) -> Node:
        """A factor that may have a sign: 2 * -3."""
        if self.take("-"):
            return Node("neg", (self.signed_factor(),))
        self.take("+")
        return self.factor()

    def starts_factor(self) -> bool:
        """Whether what comes multiplies what was read without a sign between them."""
        token, last = self.next, self.tokens[self.position - 1]
        if token.kind == "number":
            if last.kind == "number" and not self.after_power():
                raise Unreadable("two numbers side by side")
            return True
        if token.text == "|":
            return not self.bars
        return token.kind == "letter" or token.text in CLOSING or (token.kind == "command" and token.text not in _ENDS)

    def after_power(self) -> bool:
        """Whether the number just read is a power or a subscript, with a space behind it: 2^6 3^5, \\log_2 3."""
        return self.next.spaced and self.tokens[self.position - 2].text in ("^", "_")

    def factor(self) -> Node:
        """An atom with its powers and factorials."""
        return self.powers(self.atom())

    def powers(self, tree: Node) -> Node:
        """What stands behind an atom: ^, !, degrees."""
        while True:
            if self.at("^") and self.tokens[self.position + 1].text == r"\circ":
                self.position += 2
                tree = Node("degrees", (tree,)) if self.in_angle else tree
            elif self.take("^"):
                tree = Node("pow", (tree, self.exponent()))
            elif self.take("!"):
                tree = Node("factorial2" if self.take("!") else "factorial", (tree,))
            else:
                return tree

    def exponent(self) -> Node:
        """{..}, or one atom with its sign; x^2^3 is x^(2^3)."""
        if self.take("-"):
            return Node("neg", (self.exponent(),))
        self.take("+")
        tree = self.atom()
        return Node("pow", (tree, self.exponent())) if self.take("^") else tree

    def atom(self) -> Node:
        """A number, a symbol, a bracket, or what a command says."""
        token = self.next
        if token.kind == "end":
            raise Unreadable("nothing comes")
        self.position += 1
        if token.kind == "number":
            return number(Fraction(token.text) if token.value is None else token.value)
        if token.kind == "letter":
            return notation.letter(self, token.text)
        if token.text in CLOSING:
            return self.closed(CLOSING[token.text])
        if token.text == "|":
            return self._absolute()
        if token.kind == "command" and token.text not in _ENDS:
            return notation.command(self, token.text[1:])
        raise Unreadable(f"{token.text} has nothing before it")

    def closed(self, closing: str) -> Node:
        """The expression up to a closing bracket."""
        bars, self.bars = self.bars, 0
        tree = self.expression()
        self.expect(closing)
        self.bars = bars
        return tree

    def _absolute(self) -> Node:
        self.bars += 1
        tree = self.expression()
        self.expect("|")
        self.bars -= 1
        return Node("abs", (tree,))

    def argument(self) -> Node:
        r"""What a command is applied to: {..}, or the one digit, letter or command that follows."""
        token = self.next
        if self.take("{"):
            return self.closed("}")
        if token.kind == "number" and token.text.isdigit() and len(token.text) > 1:
            self.tokens[self.position] = token._replace(text=token.text[1:], spaced=False)
            return number(int(token.text[0]))
        return self.atom()

    def part(self, end: int) -> Node:
        """The expression that the tokens up to `end` are; 1 when there are none."""
        inner = Parser([*self.tokens[self.position : end], *self.tokens[-2:]])
        inner.bound, inner.depth = self.bound, self.depth
        if inner.next.kind == "end":
            return number(1)
        tree = inner.expression()
        inner.expect("end")
        return tree


def _product(factors: list[Node]) -> Node:
    return factors[0] if len(factors) == 1 else Node("mul", tuple(factors))
