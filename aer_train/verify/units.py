r"""The unit beside a number: 5 \text{ square cm}, 18 eggs per day, 3 \times 10^8 \mathrm{~m/s}, €5, 25^\circ C.

Words are a unit only if they are measures (`measures`) or name what is counted (`counted`); in a gold answer, which no policy writes, any
word is one that does not change the number. Measures have one spelling: m/s^2, \frac{m}{s^2} and meters per second squared are m s^-2.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from aer_train.verify.counted import BEFORE_NOUNS, is_counted, is_noun
from aer_train.verify.measures import CURRENCY_SIGNS, FRACTIONS, POWERS_BEFORE, POWERS_BEHIND, SCALES, measure, one_spelling

LONGEST = 100
"""Characters at the end of an answer in which a unit is looked for."""

_POWER = r"(\^ ?(?:-?\d|\{ ?-?\d ?\}))?"
_WRITTEN = r"\\text ?\{((?:[^{}]|\{[^{}]*\})*)\}"
_FRACTION = re.compile(rf"\\frac ?\{{ ?{_WRITTEN}{_POWER} ?\}} ?\{{ ?{_WRITTEN}{_POWER} ?\}}$")
_LAST = re.compile(
    rf"([ */-]*)(?:{_WRITTEN}|(?<= )\(([A-Za-z][A-Za-z /.]{{2,}})\)|(?<![A-Za-z\\])([A-Za-zµΩÅ][A-Za-z.]*)|([€£¥₹])){_POWER}$"
)
_TEMPERATURE = re.compile(r"\^\\circ ?(?:\\text ?\{ ?([CFK])[a-z]* ?\}|([CFK])(?![A-Za-z]))")
_ANGLE = re.compile(r"sin|cos|tan|cot|sec|csc")
_PREFIX = re.compile(r"(-? ?)(?:\\text ?\{ ?([A-Z][A-Za-z]{1,2})\.? ?\}|([€£¥₹])|(Rs|USD|EUR|GBP|INR|US)(?![A-Za-z])\.?) ?(?=[-\d.\\])")
_SPELLED = (
    (re.compile(r"\\mu ?(?=\\text ?\{)(\\text ?\{)"), r"\1µ"),
    (re.compile(r"\\mu ?(?=[A-Za-z](?![A-Za-z]))"), "µ"),
    (re.compile(r"\\Omega"), "Ω"),
    (re.compile(r"^\\text ?\{ ?(-?[\d.,]+) ([A-Za-z]+) ?\}(?=\^)"), r"\1 \\text{\2}"),
    (re.compile(r"\b([ap])\.m\b\.?"), r"\1m"),
)
_WORD = re.compile(r"(?P<over>/|\bper\b)|(?P<word>[A-Za-zµΩÅ€£¥₹'-]+)\.?(?: ?\^ ?\{? ?(?P<power>-?\d) ?\}?)?|[ *().]+|.")
_SUBSCRIPT = re.compile(r"_ ?(?:\w|\{[^{}]*\})")
_LETTERS = set("msghLNJKVWAFC")
"""Units of one letter; other letters are variables."""

_QUOTIENT = re.compile(r"\d ?(?:k?m|cm|mm|ft|mi|[km]?g|N|k?J|W|mol) ?/ ?(?:s|h|hr|min|mol|c?m|m?L|K|kg)(?:\^-?\d|\^\{-?\d\})?$")
"""Quotients that are units even where a letter is a variable."""

_CHANGES_THE_NUMBER = re.compile(
    r"(?:and|or|not|no|never|maybe|perhaps|either|neither|except|over|minus|plus|less|more|fewer|under|above|below|half|halves|"
    r"squared|cubed|factorial|if|choose|mod|base|to|between|from|than|sqrt|sin|cos|tan|log|exp|alpha|beta|gamma|delta|theta|lambda|sigma|omega|infinity|pi|"
    rf"is|are|was|be|odd|even|prime|wrong|false|incorrect|true|negative|positive|twice|double|triple|quarters?|{FRACTIONS})"
)
"""Words that are no unit even in a gold answer: with them the text is not the number before them."""


class Split(NamedTuple):
    """A text without its unit."""

    head: str
    scale: Fraction
    """What a word like million or dozen multiplies the number by."""
    unit: str
    """Measures in one spelling, m s^-2; empty where only things are counted."""


def split_unit(text: str, *, letters: bool = False, gold: bool = False) -> Split | None:
    r"""Split the unit from the end (or a currency from the front) of a cleaned text; None when the words there are no unit.

    12 \pi \text{ square centimeters} -> (12 \pi, 1, cm^2);  5 million dollars -> (5, 10^6, dollar);  5 and a half -> None

    Args:
        letters: a single letter behind a space may be a unit (5 m); otherwise it is a variable.
        gold: unknown words are units, too, as long as they do not change the number.
    """
    if "\\" in text or ".m" in text:
        for pattern, spelling in _SPELLED:
            text = pattern.sub(spelling, text)
    gold = gold and any(character.isdigit() for character in _SUBSCRIPT.sub("", text))  # P_2 have the same area
    text, front = _without_currency(text)
    head, rest = text[:-LONGEST], _TEMPERATURE.sub(r" \\text{deg\1\2}", text[-LONGEST:])
    rest = (rest if _ANGLE.search(text) else rest.replace("^\\circ", "")).strip().rstrip(" .")
    letters = letters or bool(_QUOTIENT.search(rest))
    words: list[str] = []
    while not rest[-1:].isdigit() or "^" in rest[-3:]:
        found, start = _last_words(rest, letters or bool(words), gold)
        if found is None or rest[:start].rstrip().endswith(("+", "-", "=", "<", ">", "(", "/")):  # ab + cd has no candelas
            break
        words, rest = found + words, rest[:start]
    scale = Fraction(1)
    while words and words[0] in SCALES:
        scale *= SCALES[words.pop(0)]
    for position, word in enumerate(words):
        power = word in POWERS_BEHIND and position and measure(words[position - 1])
        described = word in BEFORE_NOUNS and words[position + 1 :] and is_noun(words[position + 1])
        if word in SCALES or (_CHANGES_THE_NUMBER.fullmatch(word) and not power and not described):
            return None
    return Split((head + rest).strip(), scale, one_spelling([*front, *words]))


def units_differ(a: str, b: str) -> bool:
    """Whether two units in one spelling exclude one another: cm and m, cm and cm^2, but not eggs and brown eggs, nor a unit and none.

    A unit called so is any one: only its power can differ, from that of another called so.
    """
    both = (a.startswith("unit"), b.startswith("unit"))
    return a != b and bool(a) and bool(b) and (all(both) or not any(both))


def _without_currency(text: str) -> tuple[str, list[str]]:
    match = _PREFIX.match(text)
    sign = match and (match[2] or match[3] or match[4])
    if not match or not sign or not (sign in CURRENCY_SIGNS or measure(sign)):
        return text, []
    return match[1] + text[match.end() :], [sign]


def _last_words(rest: str, letters: bool, gold: bool) -> tuple[list[str] | None, int]:
    r"""The words of the last piece of a text (\text{m/s}^2 -> m, /, s^2) and where it starts; None when it is no unit."""
    if fraction := _FRACTION.search(rest):
        over, power, under, below = fraction.groups()
        return _known(f"{over}{power or ''} / {under}{below or ''}", True, gold), fraction.start()
    match = _LAST.search(rest)
    if match is None:
        return None, 0
    before, written, bracketed, plain, sign, power = match.groups()
    if plain and len(plain) == 1 and plain.isascii() and not (letters and before and (plain in _LETTERS or plain == "a")):
        return None, 0
    text = next(word for word in (written, bracketed, plain, sign) if word is not None)
    words = _known(text + (power or ""), plain is None, gold)
    return (["/", *words] if words and "/" in before else words), match.start()


def _known(text: str, marked: bool, gold: bool) -> list[str] | None:
    """The words of a unit, powers behind them; None when one of them is not known."""
    words: list[str] = []
    for match in _WORD.finditer(text):
        if match["over"]:
            words.append("/")
        elif match["word"]:
            word = match["word"].rstrip("-")
            lower = word.lower()
            if not _is_known(word) and not (gold and (marked or len(word) > 3)):
                return None
            words.append((word if measure(word) else lower) + (f"^{match['power']}" if match["power"] else ""))
        elif match[0].strip(" *()."):
            return None
    return words


def _is_known(word: str) -> bool:
    lower = word.lower()
    return bool(measure(word)) or lower in SCALES or lower in POWERS_BEFORE or lower in POWERS_BEHIND or is_counted(lower)
