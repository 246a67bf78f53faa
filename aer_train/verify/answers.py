"""The cheap, exact part of checking an answer: where it is in a response, and whether two answers are the same rational number.

Strict on purpose, because a policy finds every leniency: 50% is not 50, two different boxed answers are no answer, a list is not its
member.
All of it is linear in the length of a text that is cut first.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

TAIL = 2000
"""Characters at the end of a response in which an answer is looked for."""

MAX_DIGITS = 100
"""Longer numbers are not numbers: nobody's answer has them, and arithmetic on them costs time."""

AMBIGUOUS = "\x00ambiguous"
"""Stands for several different boxed answers; equal to no gold answer."""

_SAID = re.compile(r"answer\s*(?:is|:|=)\s*:?", re.IGNORECASE)
_NOISE = re.compile(r"\\[!,;: ]|\\quad|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|[$\s]|\\[()\[\]]")
_UNIT_COMMAND = re.compile(r"\\(?:text|mathrm|mbox|textbf)\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\{?\\circ\}?|°")
_UNIT = re.compile(r"(?<=[\d}%])\s*([A-Za-z][A-Za-z ]{0,30})$")
_NUMBER = r"\d+(?:\.\d+)?|\.\d+"
_FRAC = re.compile(r"(\d+)?\\[dt]?frac(?:\{(-?\d+)\}\{(-?\d+)\}|(\d)(\d))")
_SCIENTIFIC = re.compile(rf"({_NUMBER})(?:[eE]|(?:\\times|\\cdot|\*|x)10\^)\{{?([+-]?\d{{1,3}})\}}?")
_SCALES = {"hundred", "thousand", "million", "billion", "trillion", "dozen", "percent", "and", "or", "e", "i", "x", "y", "n", "pi"}


class Number(NamedTuple):
    """An exact number as it was written."""

    value: Fraction
    percent: bool
    unit: str


def extract(response: str) -> str | None:
    r"""Return the final answer of a response, or None.

    In this order, within the last 2,000 characters: \boxed{...} (AMBIGUOUS when several differ); #### x; the last "answer is x"; a reply
    that is nothing but a number.
    """
    tail = response[-TAIL:]
    boxed = boxes(tail)
    if boxed:
        return boxed[-1] if len({normalize(b) for b in boxed}) == 1 else AMBIGUOUS
    if "####" in tail:
        return _line(tail.rsplit("####", 1)[1])
    said = list(_SAID.finditer(tail))
    if said:
        return _line(tail[said[-1].end() :])
    return tail.strip() if len(response) <= TAIL and number(tail) is not None else None


def gold_answer(text: str) -> str:
    """Return the answer of a gold column, which may be a whole solution that ends in a marked answer."""
    boxed = boxes(text)
    if boxed:
        return boxed[-1]
    return _line(text.rsplit("####", 1)[1]) or "" if "####" in text else text.strip()


def boxes(text: str) -> list[str]:
    r"""Return the contents of every \boxed{...} with balanced braces."""
    found = []
    for match in re.finditer(r"\\f?boxed\s*\{", text):
        depth, start = 1, match.end()
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                found.append(text[start:position].strip())
                break
    return found


def normalize(text: str) -> str:
    """Return a form in which spacing and the size of brackets and fractions do not show."""
    text = _NOISE.sub("", re.sub(r"\\[dt]frac", r"\\frac", text)).replace("{,}", ",")
    text = re.sub(r"^[A-Za-z]\s*=(?!=)", "", text)
    return text.rstrip(".")


def number(text: str) -> Number | None:
    """Return the exact number that a text is, or None.

    Integer, decimal, fraction, mixed or scientific, with thousands separators, a percent sign, a unit.
    """
    text = text.strip().replace("\\$", "").replace("$", "").rstrip(".").strip()
    if not text or len(text) > MAX_DIGITS or not text.isascii():
        return None
    text = _DEGREES.sub("", text)
    unit = "".join(_UNIT_COMMAND.findall(text)).strip(" .").lower()
    text = _UNIT_COMMAND.sub("", text).strip()
    plain = _UNIT.search(text)
    if plain and not unit:
        unit, text = plain[1].strip().lower(), text[: plain.start(1)]
    if set(unit.split()) & _SCALES:
        return None
    text = normalize(re.sub(r"(?<=\d)\s+(?=\d+/\d)", "&", text))
    percent = text.endswith("%")
    text = text.removesuffix("%").removesuffix("\\")
    sign = -1 if text.startswith(("-", "+")) and text[0] == "-" else 1
    value = _unsigned(text.lstrip("+-") if text[:2] not in ("--", "+-", "-+", "++") else "")
    return None if value is None else Number(sign * value, percent, unit)


def same_number(a: Number, b: Number) -> bool:
    """Whether two numbers agree in value, percent sign, and in their units where both name one."""
    return a.value == b.value and a.percent == b.percent and (a.unit == b.unit or not a.unit or not b.unit)


def _unsigned(text: str) -> Fraction | None:
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    if re.fullmatch(_NUMBER, text):
        return Fraction(text)
    ratio = re.fullmatch(r"(?:(\d+)&)?(\d+)/(\d+)", text) or re.fullmatch(_FRAC, text)
    if ratio:
        whole, top, bottom = ratio[1], *[group for group in ratio.groups()[1:] if group is not None]
        return Fraction(int(whole or 0)) + Fraction(int(top), int(bottom)) if int(bottom) else None
    scientific = re.fullmatch(_SCIENTIFIC, text)
    return Fraction(scientific[1]) * Fraction(10) ** int(scientific[2]) if scientific else None


def _line(text: str) -> str | None:
    """The first line without markdown and the full stop that ends it."""
    lines = text.strip().splitlines()
    line = re.split(r"(?<![\d.])\.\s|(?<=\d)\.\s+(?=[A-Z])", lines[0])[0].strip().strip("*").rstrip(".").strip() if lines else ""
    return line or None
