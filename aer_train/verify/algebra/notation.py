r"""What letters and commands mean: symbols with their subscripts, constants, fractions, roots, and the functions of `calls`.

e is Euler's number and i the imaginary unit, unless they carry a subscript or are a variable of summation. x(t), I(0) and f(a+b) are the
values of unknown functions; x(t+1) is a product. \frac{dx}{dt} is one name.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from aer_train.verify.algebra import calls
from aer_train.verify.algebra.reader import Reader
from aer_train.verify.algebra.tokens import Token
from aer_train.verify.algebra.tree import Node, Unreadable, number
from aer_train.verify.latex import GREEK

_OTHERS = "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega hbar ell infty dots nabla partial odot oplus star"
SYMBOLS = {*GREEK.split("|"), *_OTHERS.split()}
_DECORATIONS = "dot ddot hat widehat bar overline vec tilde widetilde mathcal mathscr mathfrak mathbb mathring overrightarrow"
DECORATIONS = set(_DECORATIONS.split())
FUNCTION_LETTERS = set("fgh")
_DIFFERENTIAL = re.compile(r"\{?(?:d|\\partial)(?:\^\{?\d\}?)?(?P<of>\\?[A-Za-z][^-+]*)?\}?")


def letter(p: Reader, name: str) -> Node:
    """A symbol, a constant, or an unknown function of what follows in brackets."""
    if p.at("_", "'") or name in p.bound or name not in "ei":
        return _symbol(p, name)
    return Node("constant", (), name)


def command(p: Reader, name: str) -> Node:
    """What a command says about what follows."""
    if name == "pi" and not p.at("_"):
        return Node("constant", (), "pi")
    if name in ("infty", "infinity") and not p.at("_"):
        return Node("constant", (), "infty")
    if name in SYMBOLS or name == "pi":
        return _symbol(p, "\\" + name)
    if name in DECORATIONS:
        start = p.position
        p.argument()
        if name == "mathbb" and p.at("^") and p.tokens[p.position + 1].text in ("+", "-", "*"):  # \mathbb{Z}^+
            p.position += 2
        return _symbol(p, f"\\{name} " + _written(p.tokens[start : p.position]))
    if name in _MEANINGS:
        return _MEANINGS[name](p)
    if name in calls.FUNCTIONS:
        return calls.function(p, calls.FUNCTIONS[name])
    raise Unreadable(f"\\{name} is not known here")


def _symbol(p: Reader, name: str) -> Node:
    while p.at("_", "'"):
        if p.take("'"):
            name += "'"
            continue
        start = p.position = p.position + 1
        if p.take("{"):
            depth = 1
            while depth:
                depth += p.at("{") - p.at("}")
                if p.next.kind == "end":
                    raise Unreadable("a subscript that does not close")
                p.position += 1
        elif p.next.kind == "end":
            raise Unreadable("a subscript must come")
        else:
            p.position += 1
        name += "_" + _written(p.tokens[start : p.position])
    if _is_applied(p, name):
        p.expect("(")
        return Node("apply", tuple(calls.listed(p, ")")), name)
    return Node("symbol", (), name)


def _is_applied(p: Reader, name: str) -> bool:
    """Whether a bracket that follows holds arguments: atoms only, or anything after f, g and h."""
    if not p.at("(") or p.next.spaced:
        return False
    if name.rstrip("'") in FUNCTION_LETTERS:
        return True
    position = p.position + 1
    while p.tokens[position].kind in ("number", "letter") or p.tokens[position].text[1:] in SYMBOLS:
        separator = p.tokens[position + 1].text
        if separator == ")":
            return True
        if separator != ",":
            return False
        position += 2
    return False


def _written(found: list[Token]) -> str:
    return "".join(token.text for token in found if token.text not in ("{", "}", r"\text"))


def _fraction(p: Reader) -> Node:
    start = p.position
    top = p.argument()
    middle = p.position
    bottom = p.argument()
    above, below = ("".join(token.text for token in p.tokens[a:b]) for a, b in ((start, middle), (middle, p.position)))
    dividend, divisor = _DIFFERENTIAL.fullmatch(above), _DIFFERENTIAL.fullmatch(below)
    if dividend and divisor and divisor["of"]:
        return Node("symbol", (), f"{above}/{below}".replace("{", "").replace("}", ""))
    return Node("div", (top, bottom))


def _root(p: Reader) -> Node:
    index = p.closed("]") if p.take("[") else number(2)
    return Node("root", (p.argument(), index))


def _binomial(p: Reader) -> Node:
    return Node("binomial", (p.argument(), p.argument()))


def _between(op: str, closing: str) -> Callable[[Reader], Node]:
    return lambda p: Node(op, (p.closed(closing),))


_MEANINGS: dict[str, Callable[[Reader], Node]] = {
    "frac": _fraction,
    "sqrt": _root,
    "binom": _binomial,
    "lfloor": _between("floor", r"\rfloor"),
    "lceil": _between("ceil", r"\rceil"),
    "log": lambda p: calls.logarithm(p, number(10)),
    "lg": lambda p: calls.logarithm(p, number(10)),
    "ln": lambda p: calls.logarithm(p, Node("constant", (), "e")),
    "exp": lambda p: Node("pow", (Node("constant", (), "e"), calls.applied(p))),
    "sum": lambda p: calls.series(p, "sum"),
    "prod": lambda p: calls.series(p, "prod"),
    "int": calls.integral,
}
