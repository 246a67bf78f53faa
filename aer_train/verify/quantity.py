"""Exact numbers as people write them: integers, decimals, fractions, mixed numbers, powers of ten, with a percent sign or a unit."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from aer_train.verify.algebra.tokens import MAX_POWER_OF_TEN, repeating
from aer_train.verify.measures import SCALES
from aer_train.verify.units import split_unit, units_differ

MAX_DIGITS = 100
"""Longer numbers are not numbers: nobody's answer has them, and arithmetic on them costs time."""

NUMERAL = re.compile(
    r"(?<![\w.,])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?(?:\s?\\?%|\s?per\s?cent\b)?"
    rf"(?:\s(?:{'|'.join(SCALES)})\b)*"
    r"(?:(?![\w^])|(?=(?:[kcm]?m|[km]?g|lbs?|oz|ft|mph|hrs?|mins?|[ap]m|s|h|m?L|ml)\b))"
)
"""A number within a text."""


class Quantity(NamedTuple):
    """An exact number as it was written."""

    value: Fraction
    percent: bool
    unit: str
    """In one spelling; empty when there is none."""


_DECIMAL = r"(?:\d+\.?\d*|\.\d+)"
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+(?:\.\d+)?")
_PLAIN = re.compile(_DECIMAL)
_REPEATING = re.compile(r"(\d*)\.(\d*)(?:\\(?:overline|bar|dot) ?(?:\{(\d+)\}|(\d))|\((\d+)\))")
_FOREIGN = re.compile(r"[^\x00-\x7f€£¥₹µΩÅ]")
_RATIO = re.compile(rf"(-?{_DECIMAL}) ?/ ?(-?{_DECIMAL})|\\frac\{{ ?(-?{_DECIMAL}) ?\}}\{{ ?(-?{_DECIMAL}) ?\}}")
_MIXED = re.compile(r"(\d+)(?: (\d+) ?/ ?(\d+)| ?\\frac\{ ?(\d+) ?\}\{ ?(\d+) ?\})")
_REPEATED = re.compile(r"(\d*)\.(\d*?)(?:(\d)\3{2,}|(\d{2,}?)\4+)\\dots")  # 0.333..., 0.1212...
_SCIENTIFIC = re.compile(rf"(?:({_DECIMAL}) ?(?:[eE]|[*xX] ?10 ?\^ ?)|10 ?\^ ?)\{{? ?([+-]? ?\d{{1,4}}) ?\}}?")
_WHOLE_IN_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")
_NUMBER_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty
"""
_NAMED = {name: value for value, name in enumerate(_NUMBER_WORDS.split())}
_BASED = re.compile(
    r"(-?) ?\(?([0-9A-F]+)\)? ?(?:_ ?(\d)|_ ?\{ ?(?:\\text ?\{)? ?\(?(?:base )?(\w+)\)? ?\}? ?\}|\\text ?\{ ?\(?(?:in )?base (\w+)\)? ?\}"
    r"|\(?(?:in )?base (\w+)\)?)",
    re.IGNORECASE,
)


def quantity(text: str, *, letter_units: bool = False, gold: bool = False) -> Quantity | None:
    """Return the exact number that a cleaned text is, or None.

    Args:
        letter_units: a single letter after the number may be a unit (5 m); otherwise it is a variable.
        gold: words that are not known are units, too; see `split_unit`.
    """
    text = text.strip().rstrip(" .;")
    if not text or len(text) > MAX_DIGITS or (not text.isascii() and _FOREIGN.search(text)):
        return None
    if text.isdigit():
        return Quantity(Fraction(int(text)), False, "")
    text = _unwrapped(text)
    if text.lower() in _NAMED:
        return Quantity(Fraction(_NAMED[text.lower()]), False, "")
    parts = split_unit(text, letters=letter_units, gold=gold)
    if parts is None:
        return None
    number, scale, unit = parts
    percent = number.endswith("%")
    number = number.removesuffix("%").strip()
    sign = -1 if number.startswith("-") else 1
    value = _unsigned(number[1:].strip() if number[:1] in ("-", "+") else number)
    return None if value is None else Quantity(sign * value * scale, percent, unit)


def same_quantity(a: Quantity, b: Quantity) -> bool:
    """Whether two numbers agree in value and percent sign, and not in units that exclude one another."""
    return a.value == b.value and a.percent == b.percent and not units_differ(a.unit, b.unit)


def in_base(text: str) -> str | None:
    r"""Return a cleaned number in another base as digits_base (52_8 for 52_{\text{eight}}), or None."""
    match = _BASED.fullmatch(text.rstrip(" ."))
    if match is None:
        return None
    named = next(group for group in match.groups()[2:] if group).lower()
    base = int(named) if named.isdigit() else _NAMED.get(named, 0)
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in match[2]):
        return None
    return f"{match[1]}{match[2].upper()}_{base}"


def _unwrapped(text: str) -> str:
    r"""The inside of \text{..}, {..} or (..) around the whole."""
    whole = _WHOLE_IN_TEXT.fullmatch(text)
    if whole:
        return whole[1].strip()
    if text[:1] + text[-1:] in ("()", "{}") and not set(text[1:-1]) & set("(){}"):
        return text[1:-1].strip()
    return text


def _unsigned(text: str) -> Fraction | None:
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    if _PLAIN.fullmatch(text):
        return Fraction(text)
    if mixed := _MIXED.fullmatch(text):
        whole, top, bottom = (int(group) for group in mixed.groups() if group is not None)
        return whole + Fraction(top, bottom) if 0 < top < bottom else None
    if ratio := _RATIO.fullmatch(text):
        numerator, denominator = (Fraction(group) for group in ratio.groups() if group is not None)
        return numerator / denominator if denominator else None
    if scientific := _SCIENTIFIC.fullmatch(text):
        exponent = int(scientific[2].replace(" ", ""))
        return Fraction(scientific[1] or 1) * Fraction(10) ** exponent if abs(exponent) <= MAX_POWER_OF_TEN else None
    if digits := _REPEATING.fullmatch(text) or (text.endswith(r"\dots") and _REPEATED.fullmatch(text)):
        before, fixed, *period = (group for group in digits.groups() if group is not None)
        return repeating(before, fixed, period[0])
    return None
