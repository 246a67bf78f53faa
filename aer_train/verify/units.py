r"""The unit that an answer ends in: 5 \text{ square cm}, 18 eggs per day, 3 \times 10^8 \mathrm{~m} / \mathrm{s}."""

from __future__ import annotations

import re

LONGEST = 100
"""Characters at the end of an answer in which a unit is looked for."""

_MARKED = re.compile(r"\\text ?\{([^{}]*)\}|\(([A-Za-z][A-Za-z /.]{3,})\)")
_LAST = re.compile(
    r"[ */-]*(\\text ?\{[^{}]*\}|(?<= )\([A-Za-z][A-Za-z /.]{3,}\)|(?<![A-Za-z\\])[A-Za-z][A-Za-z.]*)(\^(?:-?\d|\{-?\d\}))?$"
)
_POWER = re.compile(r"\^\{?(-?\d)\}?")

_SHORT = re.compile(
    r"cm|mm|km|nm|kg|mg|ft|in|mi|yd|lb|oz|hr|ml|pm|am|of|by|sq|cu|pa|hz|mph|kph|sec|min|deg|rad|mol|gal|lbs|yrs|hrs|usd|per|the|all|"
    r"day|way|men|egg|cup|bag|box|car|cat|dog|hat|pen|pie|bus|kid"
)
"""Plain words of two or three letters that are units; others may be products of variables."""

_LETTER = re.compile(r" +[msghLNJKVWAFC]")
"""Units of one letter; others are variables."""

_CHANGES_THE_NUMBER = re.compile(
    r"and|or|not|maybe|perhaps|either|except|times|over|minus|plus|less|more|half|squared|cubed|factorial|if|choose|mod|base|to|between|from|than|sqrt|sin|cos|tan|log|"
    r"exp|alpha|beta|gamma|delta|theta|lambda|sigma|omega|infinity|pi|hundred|thousand|million|billion|trillion"
)
"""Words that are no unit: with them the text is not the number before them."""

_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}

_SPELLINGS = {
    "cm": ["centimeter", "centimetre"],
    "mm": ["millimeter", "millimetre"],
    "km": ["kilometer", "kilometre"],
    "m": ["meter", "metre"],
    "in": ["inche", "inch"],
    "ft": ["foot", "feet"],
    "yd": ["yard"],
    "mi": ["mile"],
    "g": ["gram"],
    "kg": ["kilogram"],
    "lb": ["pound"],
    "oz": ["ounce"],
    "l": ["liter", "litre"],
    "ml": ["milliliter", "millilitre"],
    "s": ["second", "sec"],
    "minute": ["min"],
    "h": ["hour", "hr"],
    "mph": ["mi per h"],
    "rad": ["radian"],
    "dollar": ["buck", "usd"],
    "degree": ["deg"],
    "": ["unit", "point"],
}
_MEASURE = re.compile(
    r"(?:(?:cm|mm|km|nm|m|in|ft|yd|mi|mg|g|kg|lb|oz|ml|l|gal|s|minute|h|day|week|month|year|mph|kph|rad|degree|dollar|cent|mol|n|j|w|v|a|pa|hz)"
    r"(?:\^-?\d)?(?: per | |$))+"
)
"""Units that exclude one another; other words (eggs, students) only say what is counted."""

_NAMES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings}


def split_unit(text: str, *, letters: bool = False) -> tuple[str, int, str] | None:
    r"""Return (the text before its unit, a power of ten, the unit in one spelling), or None when the words at the end are no unit.

    12 \pi \text{ square centimeters} -> (12 \pi, 0, cm^2);  5 million dollars -> (5, 6, dollar);  5 and a half -> None

    Args:
        text: cleaned. The signs of money and degrees are no unit: they say what the number says without them.
        letters: a single letter may be a unit (5 m); otherwise it is a variable.
    """
    head, rest = text[:-LONGEST], text[-LONGEST:].replace("^\\circ", "").strip().rstrip(" .")
    names: list[str] = []
    while match := _LAST.search(rest):
        found = _words(match, letters)
        if found is None:
            break
        names, rest = found + names, rest[: match.start()]
    scale = 0
    while names and names[0] in _SCALES:
        scale += _SCALES[names.pop(0)]
    if any(_CHANGES_THE_NUMBER.fullmatch(name) for name in names):
        return None
    return (head + rest).strip(), scale, _one_spelling(names)


def units_differ(a: str, b: str) -> bool:
    """Whether two units (in one spelling) exclude one another: cm and m, cm and cm^2, but not eggs and brown eggs, nor a unit and none."""
    return a != b and bool(_MEASURE.fullmatch(a)) and bool(_MEASURE.fullmatch(b))


def _words(match: re.Match[str], letters: bool) -> list[str] | None:
    r"""The words of a unit at the end, lower case (\text{m/s}^2 -> m, per, s^2), or None when it is none."""
    marked = _MARKED.fullmatch(match[1])
    token = ((marked[1] or marked[2] or "") if marked else match[1]).replace(".", "").lower()
    if any(character.isdigit() for character in token):
        return None
    if not marked and len(token) < 4 and not _SHORT.fullmatch(token) and not (letters and _LETTER.fullmatch(match[0])):
        return None
    words = token.replace("/", " per ").split()
    if words and match[2]:
        words[-1] += _POWER.sub(r"^\1", match[2])
    divided = "/" in match[0][: match.start(1) - match.start()]
    return ["per", *words] if divided else words


def _one_spelling(names: list[str]) -> str:
    if not names:
        return ""
    power = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}.get(names[0], "")
    unit = " ".join(name for name in map(_singular, names[1:] if power else names) if name)
    return _NAMES.get(unit, unit + power if unit else "")


def _singular(name: str) -> str:
    name, hat, power = name.partition("^")
    stem = name.removesuffix("s") if len(name) > 2 else name
    return _NAMES.get(name, _NAMES.get(stem, stem)) + hat + power
