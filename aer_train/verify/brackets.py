r"""Brackets in a cleaned text: splitting outside of all of them, and finding those around the whole."""

from __future__ import annotations

import re
from functools import cache

_OPEN, _CLOSE = "([{", ")]}"
_PAIRS = ("()", "(]", "[)", "[]", "{}", "\\{\\}")


def split(text: str, separator: str) -> list[str]:
    """Split at a separator outside all brackets; a command is not split off a longer one (\\cup, \\cupdot)."""
    return divided(text, _separator(separator))[::2] if separator in text else [text.strip()]


@cache
def _separator(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text) + (r"(?![^\W\d_])" if text[0] == "\\" else ""))


def divided(text: str, separator: re.Pattern[str]) -> list[str]:
    """Return the parts of a text and the separators between them, as re.split does, outside all brackets."""
    found, start, depth, position = [], 0, 0, 0
    for match in separator.finditer(text):
        depth += sum((character in _OPEN) - (character in _CLOSE) for character in text[position : match.start()])
        position = match.end()
        if depth == 0:
            found += [text[start : match.start()].strip(), match[0]]
            start = match.end()
    return [*found, text[start:].strip()]


def enclosing(text: str) -> str:
    r"""Return the brackets around the whole: (), (], [), [], {} or \{\}; empty when the first does not close at the end."""
    opening, closing = ("\\{", "\\}") if text.startswith("\\{") and text.endswith("\\}") else (text[:1], text[-1:])
    if opening + closing not in _PAIRS:
        return ""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0 and character in _CLOSE:
            return opening + closing if position == len(text) - 1 else ""
    return ""


def inside(text: str, brackets: str) -> str:
    """Return what these brackets around a text hold."""
    width = len(brackets) // 2
    return text[width:-width].strip()
