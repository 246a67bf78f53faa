r"""How functions, logarithms, sums and integrals are written: \sin^2 x, \log_2 8, \sum_{k=1}^{10} k, \max(a, b).

A function without brackets takes the product that follows, up to a sign, a bracket or the next function: \sin 2x \cos x is
(\sin 2x)(\cos x), and \ln x / 2 is (\ln x) / 2. \log is to base 10. Degrees are an angle inside of trigonometric functions only.
"""

from __future__ import annotations

from aer_train.verify.algebra.reader import Reader
from aer_train.verify.algebra.tree import Node, Unreadable, number

TRIGONOMETRIC = {"sin": "asin", "cos": "acos", "tan": "atan", "cot": "acot", "sec": "asec", "csc": "acsc"}
"""Functions and their inverses."""

HYPERBOLIC = {"sinh": "asinh", "cosh": "acosh", "tanh": "atanh", "coth": "acoth", "sech": "asech", "csch": "acsch"}
INVERSE = TRIGONOMETRIC | HYPERBOLIC
FUNCTIONS = {
    **{name: name for pair in INVERSE.items() for name in pair},
    **{"arc" + name: inverse for name, inverse in INVERSE.items()},
    **{"ar" + name: inverse for name, inverse in HYPERBOLIC.items()},
    **{name: name for name in ("max", "min", "gcd", "lcm", "abs", "floor", "ceil", "sgn")},
}
"""Commands -> operations."""

SEVERAL = {"max", "min", "gcd", "lcm"}
"""Functions of any number of arguments."""

_STOPS = {f"\\{name}" for name in (*FUNCTIONS, "log", "ln", "lg", "exp", "sum", "prod", "int")} | {"(", "[", "|", r"\{"}


def function(p: Reader, op: str) -> Node:
    """A function by its name, with a power between name and argument."""
    power = p.exponent() if p.take("^") else None
    if op in SEVERAL:
        closing = {"(": ")", "{": "}", r"\{": r"\}", "[": "]"}.get(p.next.text)
        if not closing:
            raise Unreadable(f"arguments of {op} must come")
        p.position += 1
        return _raised(Node(op, tuple(listed(p, closing))), power)
    if power == Node("neg", (number(1),)) and op in INVERSE:
        op, power = INVERSE[op], None
    angle, p.in_angle = p.in_angle, op in TRIGONOMETRIC
    tree = Node(op, (applied(p),))
    p.in_angle = angle
    return _raised(tree, power)


def applied(p: Reader) -> Node:
    """What a function is applied to."""
    if p.at("(", "[", "{", "|"):
        return p.atom()
    tree = p.signed_factor()
    while p.starts_factor() and p.next.text not in _STOPS:
        tree = Node("mul", (tree, p.factor()))
    return tree


def listed(p: Reader, closing: str) -> list[Node]:
    """Expressions between commas, up to a closing bracket."""
    found = [p.expression()]
    while p.take(","):
        found.append(p.expression())
    p.expect(closing)
    return found


def logarithm(p: Reader, base: Node) -> Node:
    """A logarithm, with base and power in any order."""
    power = None
    while p.at("^", "_"):
        if p.take("^"):
            power = p.exponent()
        else:
            p.expect("_")
            base = p.atom() if _is_whole_base(p) else p.argument()
    return _raised(Node("log", (applied(p), base)), power)


def _is_whole_base(p: Reader) -> bool:
    """Whether several digits are all of the base (\\log_10 5), and not base and argument (\\log_28)."""
    after = p.tokens[p.position + 1]
    return p.next.kind == "number" and (after.kind in ("number", "letter", "command") or after.text in ("(", "{", "|"))


def series(p: Reader, op: str) -> Node:
    r"""A sum or product: _{k=1}^{n} and the product that follows."""
    lower, upper, name = None, None, ""
    while p.at("^", "_"):
        if p.take("^"):
            upper = p.exponent()
            continue
        p.expect("_")
        p.expect("{")
        name = p.next.text
        if p.next.kind != "letter":
            raise Unreadable("a variable of summation must come")
        p.position += 1
        p.expect("=")
        lower = p.closed("}")
    if lower is None or upper is None:
        raise Unreadable("a sum must have bounds")
    p.bound.append(name)
    body = p.product()
    p.bound.pop()
    return Node(op, (lower, upper, body), name)


def integral(p: Reader) -> Node:
    """An integral: bounds, the integrand up to the d, and the variable."""
    lower = upper = number(0)
    while p.at("^", "_"):
        if p.take("^"):
            upper = p.exponent()
        else:
            p.expect("_")
            lower = p.argument()
    end = _differential(p)
    name = p.tokens[end + 1].text
    p.bound.append(name)
    body = p.part(end)
    p.bound.pop()
    p.position = end + 2
    return Node("integral", (lower, upper, body), name)


def _differential(p: Reader) -> int:
    depth = 0
    for position in range(p.position, len(p.tokens) - 1):
        token, after = p.tokens[position], p.tokens[position + 1]
        depth += (token.text in ("(", "{", "[", r"\{")) - (token.text in (")", "}", "]", r"\}"))
        if depth < 0:
            break
        if depth == 0 and token.text == "d" and after.kind == "letter":
            return position
    raise Unreadable("a differential must come")


def _raised(tree: Node, power: Node | None) -> Node:
    return tree if power is None else Node("pow", (tree, power))
