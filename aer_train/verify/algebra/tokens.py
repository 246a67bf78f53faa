r"""A cleaned text cut into tokens: numbers, mixed numbers, letters, commands, signs."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from aer_train.verify.algebra.tree import Unreadable

MAX_TOKENS = 400
MAX_DIGITS = 300
"""Of one number."""

MAX_POWER_OF_TEN = 400
"""The largest that is written out."""

FUNCTION_NAMES = (
    "arcsin|arccos|arctan|arccot|arcsec|arccsc|asin|acos|atan|sinh|cosh|tanh|coth|sech|csch|sin|cos|tan|cot|sec|csc|ln|log|lg|exp|sqrt|max|min"
    "|gcd|lcm|abs|floor|ceil"
)
"""Functions that are also written without a backslash."""


class Token(NamedTuple):
    """A piece of a text."""

    kind: str
    """number, command, letter, sign, end."""
    text: str
    spaced: bool = False
    """Whether a space stands before it."""
    value: Fraction | None = None
    """Of a mixed number, a repeating decimal or a power of ten."""


_MIXED = (
    r"(?<![\^_.,\d])(?P<whole>\d+)(?: ?\\frac ?\{ ?(?P<over>\d+) ?\}\{ ?(?P<under>\d+) ?\}| (?P<top>\d+) ?/ ?(?P<bottom>\d+)(?![\d.^]))"
)
_NUMBER = r"(?P<number>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+\.?\d*|\.\d+)"
_LISTS = re.compile(r"max|min|gcd|lcm|[A-Za-z]\(\d")
"""Where a comma separates arguments, and no thousands."""
_DIFFERENTIALS = re.compile(r"(?<![A-Za-z\\])d ?([A-Za-z]) ?/ ?d ?([A-Za-z])(?![A-Za-z])")
_REPEATING = r"(?P<before>\d*)\.(?P<fixed>\d*)\\overline\{(?P<period>\d+)\}"
_SCIENTIFIC = r"(?P<mantissa>\d+\.?\d*|\.\d+)[eE](?P<exponent>[+-]?\d{1,4})(?![\w.])"
_NAME = rf"(?:\b(?:np|math|sympy)\.)?(?<![A-Za-z\\])(?P<name>{FUNCTION_NAMES}|pi|infinity|infty|mod)(?![A-Za-z])"
_TOKEN = re.compile(
    rf"(?P<space> +)|{_MIXED}|{_REPEATING}|{_SCIENTIFIC}|{_NUMBER}|{_NAME}|(?P<letter>[A-Za-z])|(?P<command>\\(?:[A-Za-z]+|[{{}}|]))"
    r"|(?P<sign>\*\*|[-+*/^_(){}\[\]|!=<>,:'&])"
)


def tokens(text: str) -> list[Token]:
    """Cut a cleaned text.

    Raises:
        Unreadable - a character that stands for nothing, or too many tokens.
    """
    found: list[Token] = []
    text = _DIFFERENTIALS.sub(r"\\frac{d\1}{d\2}", text)
    if _LISTS.search(text):
        text = text.replace(",", ", ")
    position, spaced = 0, False
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or len(found) >= MAX_TOKENS:
            raise Unreadable(f"at {text[position : position + 20]!r}")
        position = match.end()
        if match["space"]:
            spaced = True
            continue
        if match["whole"] and not 0 < int(match["over"] or match["top"]) < int(
            match["under"] or match["bottom"]
        ):  # 2\frac{3}{2} is a product
            found.append(Token("number", match["whole"], spaced))
            position = match.end("whole")
        else:
            found.append(_token(match, spaced))
        spaced = False
    return [*found, Token("end", "end"), Token("end", "end")]


def _token(match: re.Match[str], spaced: bool) -> Token:
    kind = match.lastgroup or ""
    if kind in ("letter", "command", "sign"):
        return Token(kind, "^" if match[0] == "**" else match[0], spaced)
    if kind == "name":
        return Token("command", "\\" + match["name"], spaced)
    if len(match[0]) > MAX_DIGITS:
        raise Unreadable("a number of too many digits")
    if match["whole"]:
        value = int(match["whole"]) + Fraction(int(match["over"] or match["top"]), int(match["under"] or match["bottom"]))
        return Token("number", "mixed", spaced, value)
    if match["period"]:
        return Token("number", "repeating", spaced, repeating(match["before"], match["fixed"], match["period"]))
    if match["mantissa"]:
        exponent = int(match["exponent"])
        if abs(exponent) > MAX_POWER_OF_TEN:
            raise Unreadable("a power of ten too large")
        return Token("number", "scientific", spaced, Fraction(match["mantissa"]) * Fraction(10) ** exponent)
    return Token("number", match[0].replace(",", ""), spaced)


def repeating(before: str, fixed: str, period: str) -> Fraction:
    r"""Return the value of before.fixed\overline{period}, all of digits."""
    return Fraction(f"{before or 0}.{fixed or 0}") + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
