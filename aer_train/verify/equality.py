"""What can be decided exactly about an answer and a gold answer, without symbolic mathematics.

The conventions, strict on purpose because a policy finds every leniency:

* A percent sign counts: 50% is neither 50 nor 0.5. Units count where both answers name a measure: 5 cm is not 5 m, but it
  is 5; the signs of money and degrees, and what is counted (eggs, students), do not.
* A decimal is the number that it is: 0.333 is not 1/3, and rounding is not equality.
* An interval is not a set, a list is not a tuple; a list equals a set of the same values, in any order; a list is not its member.
* x = 5 is 5, and so is a chain that ends in 5; the gold answer's equation must be met by an equation, or by its right-hand side when its
  left-hand side is a name.
* A number in another base is not the number without its base.
* Words are compared without case; a choice is its letter, and (C) 42 is either C or 42, as the gold answer asks.
* Several boxed answers must all be right, or be the parts of a gold list: 41 and 42 in two boxes is wrong whatever the gold answer is.
"""

from __future__ import annotations

import re
from functools import lru_cache

from aer_train.verify.latex import clean, squeeze, words
from aer_train.verify.quantity import in_base, quantity, same_quantity
from aer_train.verify.shape import same_shape, shape
from aer_train.verify.units import split_unit, units_differ

MAX_ANSWER = 1000
"""Characters; a longer answer is equal to no gold answer but the very same text."""

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_CHOICE = re.compile(
    r"(?:\\text ?\{ ?\(? ?([A-J]) ?\)?[.:]? ?\}[.:]?|\( ?([A-J]) ?\)[.:]?|([A-J])[).:])"
    r"(?: (?!(?:\\text ?\{ ?)?(?:or|and|not|but)\b|[,;/&])(.+))?|([A-J])"
)
_LETTERS = re.compile(r"(?:[A-Za-z]+[ .'-])*[A-Za-z]{3,}(?:[ .'-][A-Za-z]+)*\.?")
_LABEL = re.compile(r"^\\text ?\{(?!.*\bnot\b)[^{}]*(?::|\bis|\bare) ?\} ?")
_APPROXIMATELY = re.compile(r"\\(?:approx|simeq|sim|doteq|cong)(?![A-Za-z])")
_SHORT_WORD = re.compile(r"(?![A-Z]{2})(?=[A-Za-z]*[aeiou])[A-Za-z]{2,3}")  # no, odd, Bob; but not AB, xyz
_CLOCK = re.compile(r"\d{1,2}:\d\d( ?[ap]m)?")
_TEXT_ONLY = re.compile(r"\\text ?\{[^{}]*\}(?: ?\\text ?\{[^{}]*\})*")


def compare(answer: str, gold: str) -> bool | None:
    """Return whether an answer equals the gold answer; None when it takes symbolic mathematics to know."""
    if answer == gold:
        return True
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return int(answer) == int(gold)
    if len(answer) > MAX_ANSWER or len(gold) > MAX_ANSWER:
        return False
    try:
        return _compare(answer, gold)
    except RecursionError:  # brackets within brackets within brackets
        return False


@lru_cache(maxsize=50_000)
def _compare(answer: str, gold: str) -> bool | None:
    found, expected = _stated(answer), _stated(gold)
    if not found.isprintable():
        return False
    value, truth = quantity(found, letter_units=True), quantity(expected)
    if value is not None and truth is not None:
        return same_quantity(value, truth)
    if _bare(found) == _bare(expected):
        return True
    letter, rest = _choice(found)
    asked, beside = _choice(expected)
    if asked and not beside:
        return letter == asked
    return same_shape(rest or found, expected, exactly)


def _choice(text: str) -> tuple[str, str]:
    """The letter of a choice and what stands after it: (C) 42 -> C, 42; both empty for anything else."""
    match = _CHOICE.fullmatch(text)
    return (match[1] or match[2] or match[3] or match[5], match[4] or "") if match else ("", "")


def _stated(text: str) -> str:
    r"""The cleaned text, with x \approx 5, = 5 and \text{Total: } 5 read as x = 5, 5 and 5; the number must still be the exact one."""
    return _LABEL.sub("", _APPROXIMATELY.sub("=", clean(text)).removeprefix("=").strip())


def answer_key(answer: str) -> str:
    """Return what answers share that are one vote: the same numbers (units aside) or forms, in the same shape."""
    taken = shape(_stated(answer[:MAX_ANSWER]))
    keys = [_key(part) for part in taken.parts]
    unordered = taken.kind in ("list", "set", "union")
    return keys[0] if taken.kind == "value" else f"{'list' if unordered else taken.kind}: {', '.join(sorted(keys) if unordered else keys)}"


def _key(part: str) -> str:
    found = quantity(part, letter_units=True)
    return _bare(without_unit(part)[0]) if found is None else f"{found.value}{'%' if found.percent else ''}"


def exactly(answer: str, gold: str) -> bool | None:
    """Return whether two single values are equal, None when it takes symbolic mathematics to know."""
    value, truth = quantity(answer, letter_units=True), quantity(gold)
    if value is not None and truth is not None:
        return same_quantity(value, truth)
    if is_text(gold) or (_TEXT_ONLY.fullmatch(answer) and _SHORT_WORD.fullmatch(gold)):
        return words(answer).replace(" ", "") == words(gold).replace(" ", "")
    if _SHORT_WORD.fullmatch(gold) and answer.casefold() == gold.casefold():
        return True
    if in_base(answer) or in_base(gold):
        return in_base(answer) == in_base(gold)
    if ("%" in answer) != ("%" in gold) or (":" in answer) != (":" in gold) or is_text(answer):
        return False
    (left, unit), (right, other) = without_unit(answer), without_unit(gold)
    if units_differ(unit, other):
        return False
    return True if _bare(left) == _bare(right) else None


def without_unit(text: str) -> tuple[str, str]:
    """Return a cleaned text that is not a number without its unit, and the unit; with what is no unit it stays as it is."""
    parts = split_unit(text)
    return (parts[0], parts[2]) if parts and parts[0] and not parts[1] else (text, "")


def _bare(text: str) -> str:
    return squeeze(text).rstrip(".").removeprefix("+")


def is_text(text: str) -> bool:
    r"""Whether a cleaned answer is words and not mathematics: \text{east}, Tuesday, 4:30 p.m."""
    if _TEXT_ONLY.fullmatch(text):
        return True
    plain = words(text)
    return bool(_CLOCK.fullmatch(plain)) or (len(plain) >= 4 and not text.isupper() and bool(_LETTERS.fullmatch(text)))
