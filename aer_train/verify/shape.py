r"""What an answer is made of: one value, a list, a set, a tuple or interval, a union of intervals, a matrix; and equality part by part.

An interval is not a set, a list is not a tuple, and neither is its member: only a list and a set of the same values are the same, in any
order. Whether two single values are equal is asked of a function, so that the exact and the symbolic comparison share this.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from aer_train.verify.latex import squeeze
from aer_train.verify.quantity import quantity

ScalarEqual = Callable[[str, str], bool | None]
"""(answer, gold) -> whether they are equal; None when that is not known."""

MAX_PARTS = 64
"""An answer with more parts is compared as one text."""


MAX_UNLIKE = 12
"""Parts of a list that may differ in their text; every such part is compared with every other."""


class Shape(NamedTuple):
    """An answer, taken apart."""

    kind: str
    """value, list, set, union, matrix (rows of equal length), or the two brackets of a tuple or interval: (), [], (], [)."""
    parts: list[str]
    name: str
    """What stands before the equals sign: x = 5 has the name x."""


_NAME = re.compile(
    r"(?:\\text ?\{[^{}]*\}|\\?[A-Za-z]+'?(?:_(?:\w|\{[^{}]*\}))?(?: ?\([A-Za-z](?:, ?[A-Za-z])*\))?|\([A-Za-z](?:, ?[A-Za-z])*\))"
    r" ?(?:=|\\in(?![A-Za-z])|:=) ?(?!=)"
)
_FUNCTION = re.compile(r"[A-Za-z]\([A-Za-z]\)")  # f(x) = 2x + 3 is y = 2x + 3
_WORD_SEPARATOR = re.compile(r",? ?(?:\\text ?\{ ?,? ?(?:and|or) ?,? ?\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])) ?", re.IGNORECASE)
_MATRIX = re.compile(r"\[?\(?\\begin\{matrix\}(.*)\\end\{matrix\}\)?\]?", re.DOTALL)
_SET_BUILDER = re.compile(r"\\\{ ?[A-Za-z](?: ?\\in ?\\(?:mathbb ?\{R\}|R))? ?[|:] ?([^|:]+)\\\}")
_CHAIN = re.compile(r"([^<>]+?) ?(<|\\le(?![A-Za-z])) ?([A-Za-z]) ?(<|\\le(?![A-Za-z])) ?([^<>]+)")
_RAY = re.compile(r"([A-Za-z]) ?(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])) ?([^<>=\\]*(?:\\(?:frac|sqrt|pi)[^<>=\\]*)*)")
_RAY_REVERSED = re.compile(r"([^<>=]+?) ?(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])) ?([A-Za-z])")
_TURNED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
_MEMBERSHIP = re.compile(r"^[A-Za-z] ?\\in(?![A-Za-z]) ?")
_OPEN, _CLOSE = "([{", ")]}"


def shape(text: str) -> Shape:
    """Take a cleaned text apart."""
    text = text.strip().rstrip(" .;").replace(";", ",")
    named = _NAME.match(text)
    name, body = (squeeze(named[0]).rstrip("=").removesuffix("\\in").removesuffix(":"), text[named.end() :]) if named else ("", text)
    if "=" in body or not body:  # an equation, a chain of them, or several
        name, body = "", text
    if quantity(body) is not None:
        return Shape("value", [body], name)
    pieces = _split(body, "\\cup")
    if len(pieces) > 1:
        return Shape("union", [_as_interval(piece) for piece in pieces], "")
    body = _as_interval(body)
    matrix = _MATRIX.fullmatch(body)
    if matrix:
        rows = [[cell.strip() for cell in row.split("&")] for row in matrix[1].strip().removesuffix("\\\\").split("\\\\")]
        return Shape(f"matrix {[len(row) for row in rows]}", [cell for row in rows for cell in row], name)
    brackets = _enclosing(body)
    if brackets:
        inside = body[len(brackets) // 2 : -(len(brackets) // 2)].strip()
        parts = _listed(inside)
        if brackets in ("\\{\\}", "{}") and inside and not re.search(r"[|:]", inside):
            return Shape("set", parts, name)
        return Shape(brackets, parts, name) if len(parts) > 1 else Shape("value", [body], name)
    pieces = [piece for piece in _WORD_SEPARATOR.split(text) if piece.strip()]
    parts = [_as_interval(part) for piece in pieces for part in _listed(piece.strip(" ,"))]
    return Shape("list", parts, "") if len(parts) > 1 else Shape("value", [body], name)


def same_shape(answer: str, gold: str, equal: ScalarEqual) -> bool | None:
    """Return whether two cleaned texts are equal part by part; None when some single comparison is not known and none decides."""
    a, g = shape(answer), shape(gold)
    if max(len(a.parts), len(g.parts)) > MAX_PARTS:
        return squeeze(answer) == squeeze(gold)
    kinds = {a.kind, g.kind}
    if kinds == {"value"}:
        return _same_value(answer, gold, a, g, equal)
    if kinds <= {"list", "set", "union", "value"} and kinds != {"union", "value"}:
        return _same_in_any_order(a.parts, g.parts, equal)
    if a.kind != g.kind or len(a.parts) != len(g.parts) or (a.name and g.name and a.name != g.name):
        return False
    found = [same_shape(x, y, equal) for x, y in zip(a.parts, g.parts, strict=True)]
    return False if False in found else None if None in found else True


def _same_value(answer: str, gold: str, a: Shape, g: Shape, equal: ScalarEqual) -> bool | None:
    """An equation is compared with an equation as a whole; where the gold answer is none, what stands after the last = is compared."""
    found, expected = a.parts[0], g.parts[0]
    other_name = a.name and a.name != g.name and not (_FUNCTION.fullmatch(a.name) or _FUNCTION.fullmatch(g.name))
    if "=" in expected or (g.name and ("=" in found or other_name)):
        return equal(answer, gold)
    return equal(found.rsplit("=", 1)[-1].strip(), expected)


def _same_in_any_order(a: list[str], g: list[str], equal: ScalarEqual) -> bool | None:
    if len(a) != len(g):
        return False
    texts = Counter(map(squeeze, g)) - Counter(map(squeeze, a))
    left, missing = list((Counter(map(squeeze, a)) - Counter(map(squeeze, g))).elements()), list(texts.elements())
    if len(missing) > MAX_UNLIKE:
        return False
    unknown = False
    for expected in missing:
        verdicts = [same_shape(found, expected, equal) for found in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif None in verdicts:
            unknown = True
        else:
            return False
    return None if unknown else True


def _listed(text: str) -> list[str]:
    """The parts between commas; a comma inside a number (1,234) is none where others are followed by a space."""
    spaced = _split(text, ", ")
    parts = spaced if len(spaced) > 1 and not re.search(r",\S", re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)) else _split(text, ",")
    return [piece for part in parts for piece in _plus_minus(part)]


def _plus_minus(text: str) -> list[str]:
    return [text.replace("\\pm", "+", 1), text.replace("\\pm", "-", 1)] if text.count("\\pm") == 1 else [text]


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator outside all brackets."""
    if separator not in text:
        return [text.strip()]
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        if depth == 0 and text.startswith(separator, position):
            parts.append(text[start:position].strip())
            position += len(separator)
            start = position
            continue
        if character == "\\" and text[position + 1 : position + 2] in ("{", "}"):
            position += 1
            character = text[position]
        depth += (character in _OPEN) - (character in _CLOSE)
        position += 1
    parts.append(text[start:].strip())
    return parts


def _enclosing(text: str) -> str:
    r"""The brackets around the whole: (), (], [), [], {} or \{\}; empty when the first does not close at the end."""
    opening, closing = ("\\{", "\\}") if text.startswith("\\{") and text.endswith("\\}") else (text[:1], text[-1:])
    if opening + closing not in ("()", "(]", "[)", "[]", "{}", "\\{\\}"):
        return ""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0 and character in _CLOSE:
            return opening + closing if position == len(text) - 1 else ""
    return ""


def _as_interval(text: str) -> str:
    r"""Write -1 < x \le 2, x \ge 3, 3 > x, \{x | x > 3\} and x \in (..) as the intervals that they are; anything else stays as it is."""
    if builder := _SET_BUILDER.fullmatch(text):
        text = builder[1].strip()
    if chain := _CHAIN.fullmatch(text):
        return f"{'(' if chain[2] == '<' else '['}{chain[1]},{chain[5]}{')' if chain[4] == '<' else ']'}"
    if ray := _RAY.fullmatch(text):
        sign, bound = ray[2], ray[3]
    elif ray := _RAY_REVERSED.fullmatch(text):
        bound, sign = ray[1], _TURNED[ray[2]]
    else:
        return _MEMBERSHIP.sub("", text, count=1)
    if sign in ("<", "\\le"):
        return f"(-\\infty,{bound}{')' if sign == '<' else ']'}"
    return f"{'(' if sign == '>' else '['}{bound},\\infty)"
