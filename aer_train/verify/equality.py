"""What can be decided exactly about an answer and a gold answer, without symbolic mathematics. The conventions: see `aer_train.verify`."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from aer_train.verify.algebra.tokens import FUNCTION_NAMES
from aer_train.verify.choice import choice
from aer_train.verify.latex import clean, squeeze, words
from aer_train.verify.match import Rules, same
from aer_train.verify.quantity import in_base, quantity, same_quantity
from aer_train.verify.shape import shape
from aer_train.verify.units import split_unit, units_differ

MAX_ANSWER = 1000
"""Characters; a longer answer is equal to no gold answer but the very same text."""

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_LETTERS = re.compile(r"(?:[A-Za-z]+(?:\. |[ .'-]))*[A-Za-z]{3,}(?:(?:\. |[ .'-])[A-Za-z]+)*\.?")
_LABEL = re.compile(
    r"^(?:\\text ?\{(?![^{}]*(?:\b(?:not|never|wrong|incorrect|false|than|least|most|half|twice|double|triple|except|unless|if|perhaps|"
    r"maybe|or|minus|negative)\b|n't))[^{}]*(?::|\bis|\bare) ?\}"
    r"|(?:the )?(?:final )?answer(?: is\b|:)) ?",
    re.IGNORECASE,
)
_LEADING = re.compile(r"^(?:=|\\approx(?![A-Za-z])) ?")
_MEMBER = re.compile(r"(?<=\S) ?\( ?([A-Za-z]) ?\\in ?(\\mathbb\{[A-Z]\}) ?\)$")  # a condition, with and without brackets
_SHORT_WORD = re.compile(r"(?![A-Z]{2})(?=[A-Za-z]*[aeiou])[A-Za-z]{2,3}")  # no, odd, Bob; but not AB, xyz
_WORDS = "yes no odd red up in out on off one two six ten all sun mon tue wed thu fri sat jan feb apr may jun jul aug sep oct nov dec"
_SHORT_WORDS = set(_WORDS.split())
"""Words that are no products of variables."""

_CAPITALS = re.compile(r"[A-Z]{3,}")
"""An order or a figure: ACB is not ABC, though a product would be."""

_ORDER = re.compile(r"\d+(?:-\d+){2,}")
"""An order or a date: 5-4-1 is not 5-1-4, though the differences would be the same."""

_CLOCK = re.compile(r"\d{1,2}:\d\d( ?[ap]m)?")
_TEXT_ONLY = re.compile(r"\\text ?\{[^{}]*\}(?: ?\\text ?\{[^{}]*\})*")
_ARTICLE = re.compile(r"^(?:an?|the) ")
_FUNCTION = re.compile(rf"\b(?:{FUNCTION_NAMES}) ?[A-Za-z(]")  # sin x
_DECIMAL = re.compile(r"[^\d./\\]*(?=\.?\d)\d*\.?(\d*)(?: ?\* ?10 ?\^ ?\{? ?(-?\d+) ?\}?)?(?! ?/|[\d.])")


def same_answer(answer: str, gold: str) -> bool | None:
    """Return whether an answer equals the gold answer; None when it takes symbolic mathematics to know."""
    if answer == gold:
        return True
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return int(answer) == int(gold)
    if len(answer) > MAX_ANSWER or len(gold) > MAX_ANSWER:
        return False
    try:
        return _same_answer(answer, gold)
    except RecursionError:  # brackets within brackets within brackets
        return False


@lru_cache(maxsize=50_000)
def _same_answer(answer: str, gold: str) -> bool | None:
    return decide(stated(answer), stated(gold), EXACT)


def decide(found: str, expected: str, rules: Rules) -> bool | None:
    """Return whether a stated answer equals a stated gold answer by these rules."""
    if not found.isprintable():
        return False
    value, truth = quantity(found, letter_units=True), quantity(expected, gold=True)
    if value is not None and truth is not None:
        return same_quantity(value, truth)
    if _bare(found) == _bare(expected):
        return True
    asked, offered = choice(expected), choice(found)
    if asked.letter and offered.letter == asked.letter and (not asked.beside or not offered.beside):
        return True
    if asked.letter and (not asked.beside or (offered.letter and offered.letter != asked.letter)):
        return False
    return same(offered.beside or found, asked.beside or expected, rules)


def stated(text: str) -> str:
    r"""Return the cleaned text without what introduces it: = 5, \approx 5 and \text{Total: } 5 say 5."""
    text = _LABEL.sub("", clean(text)).strip()
    return _MEMBER.sub(r", \1 \\in \2", _LEADING.sub("", text).strip(" ,"))


def answer_key(answer: str) -> str:
    """Return what answers share that are one vote: the same numbers (units aside) or forms, in the same shape."""
    taken = shape(stated(answer[:MAX_ANSWER]))
    keys = [_key(part) for part in taken.parts]
    unordered = taken.kind in ("list", "set", "union")
    return keys[0] if taken.kind == "value" else f"{'list' if unordered else taken.kind}: {', '.join(sorted(keys) if unordered else keys)}"


def _key(part: str) -> str:
    found = quantity(part, letter_units=True)
    return _bare(without_unit(part)[0]) if found is None else f"{found.value}{'%' if found.percent else ''}"


def exactly(answer: str, gold: str) -> bool | None:
    """Return whether two single values are equal, None when it takes symbolic mathematics to know."""
    value, truth = quantity(answer, letter_units=True), quantity(gold, gold=True)
    if value is not None and truth is not None:
        return same_quantity(value, truth)
    if is_text(gold) or (_TEXT_ONLY.fullmatch(answer) and _SHORT_WORD.fullmatch(gold)):
        return _said(answer) == _said(gold)
    if _SHORT_WORD.fullmatch(gold) and (answer.casefold() == gold.casefold() or gold.casefold() in _SHORT_WORDS):
        return answer.casefold() == gold.casefold()
    if _CAPITALS.fullmatch(gold) and _CAPITALS.fullmatch(answer):
        return answer == gold
    if _ORDER.fullmatch(gold):
        return squeeze(answer) == gold
    if in_base(answer) or in_base(gold):
        return in_base(answer) == in_base(gold)
    if ("%" in answer) != ("%" in gold) or (":" in answer) != (":" in gold) or is_text(answer):
        return False
    (left, unit), (right, other) = without_unit(answer), without_unit(gold, gold=True)
    if units_differ(unit, other):
        return False
    return True if _bare(left) == _bare(right) else None


def rounded(exact: str, decimal: str) -> bool | None:
    r"""Return whether a decimal is an exact value to its last digit; None when it takes symbolic mathematics to know."""
    value, approximation = quantity(exact, letter_units=True), quantity(decimal, letter_units=True)
    if approximation is None or value is None:
        return None
    same_kind = value.percent == approximation.percent and not units_differ(value.unit, approximation.unit)
    return same_kind and is_rounded(value.value, approximation.value, last_digit(decimal))


def is_rounded(value: Fraction, decimal: Fraction, last: Fraction) -> bool:
    """Whether a decimal is a value that was rounded, or cut off, after the digit that counts `last`."""
    return 2 * abs(value - decimal) <= last or (value * decimal >= 0 and 0 <= abs(value) - abs(decimal) < last)


def last_digit(decimal: str) -> Fraction:
    """What the last digit of a decimal counts: 1/100 for 1.29, and 0 for what is no decimal."""
    match = _DECIMAL.match(decimal.replace(",", ""))
    return Fraction(10) ** (int(match[2] or 0) - len(match[1])) if match else Fraction(0)


EXACT = Rules(exactly, rounded, lambda answer, gold: None)


def without_unit(text: str, *, gold: bool = False) -> tuple[str, str]:
    """Return a cleaned text that is not a number without its unit, and the unit; with what is no unit it stays as it is."""
    found = split_unit(text, gold=gold)
    return (found.head, found.unit) if found and found.head and found.scale == 1 else (text, "")


def _bare(text: str) -> str:
    return squeeze(text).rstrip(".").removeprefix("+")


def _said(text: str) -> str:
    return _ARTICLE.sub("", words(text)).replace(" ", "")


def is_text(text: str) -> bool:
    r"""Whether a cleaned answer is words and not mathematics: \text{east}, Tuesday, 4:30 p.m."""
    if text == r"\emptyset" or _TEXT_ONLY.fullmatch(text):
        return True
    if _FUNCTION.search(text):
        return False
    plain = words(text)
    return bool(_CLOCK.fullmatch(plain)) or (len(plain) >= 4 and not text.isupper() and bool(_LETTERS.fullmatch(text)))
