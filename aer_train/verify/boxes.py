r"""What is boxed: \boxed{..}, \fbox{..} and \boxed 5. A box that never closes was cut off, and is none."""

from __future__ import annotations

import re

MAX_BOXES = 50
"""Boxes at the end of a response that are looked at."""

MAX_BOX = 2000
"""Characters in which a box must close."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(\{)|(-?\d[\d,]*(?:\.\d+)?))")
_MINUS = re.compile(
    r"(?:^|\n|[=$(\[{:*]|(?<![\\A-Za-z])[A-Za-z]{2,}|\\(?:approx|Rightarrow|rightarrow|implies|to)) *[-\u2212]$|[=$(\[] *[-\u2212] $"
)
"""A sign before a box that belongs to what is in it: neither a difference nor the bullet of a list."""
_LETTER = re.compile(r"[A-J]|\\text\w*\{.*", re.DOTALL)
_DISPLAYED = re.compile(r"^\s*(?:\\[\[(]|\$+)\s*([^$]*?)\s*(?:\\[\])]|\$+)\s*$", re.DOTALL)
_SUM = re.compile(r"[-+=]|\\(?:pm|mp)")
_PLACEHOLDER = re.compile(r"\\h?phantom\{[^{}]*\}|\\q?quad|\\[ ,;!_]|\\l?dots|\\square|[\s.?_~]")
"""What a box holds that is to be filled in."""
_BRACE = re.compile(r"\\?[{}]")


def boxes(text: str) -> list[str]:
    r"""Return the different contents of \boxed{..} (and \fbox{..}, \boxed 5), in order, without empty ones."""
    found: list[str] = []
    last = {mark: text.rfind(mark) for mark in ("\\boxed", "\\fbox")}
    for _ in range(MAX_BOXES):
        start, mark = max((place, mark) for mark, place in last.items())
        if start < 0:
            break
        last[mark] = text.rfind(mark, 0, start)  # a long text is searched once for each mark, not for each box
        match = _BOX.match(text, start)
        content = _without_boxes(_content(text, match)[0]) if match else ""
        if _PLACEHOLDER.sub("", content):
            found.append(_signed(text[max(0, start - 40) : start], content))
    return list(dict.fromkeys(reversed(found)))


def _content(text: str, match: re.Match[str]) -> tuple[str, int]:
    """What a box holds, and where it ends; nothing when it does not close."""
    if match[2]:
        return match[2], match.end()
    depth = 1
    for brace in _BRACE.finditer(text, match.end(), match.end() + MAX_BOX):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[match.end() : brace.start()].strip(), brace.end()
    return "", match.end()


def _without_boxes(content: str) -> str:
    """The content of a box without the boxes in it, whose contents stay."""
    while inner := _BOX.search(content):
        held, end = _content(content, inner)
        content = _DISPLAYED.sub(r"\1", content[: inner.start()] + held + content[end:])
    return content


def _signed(before: str, content: str) -> str:
    """What is boxed, with a minus sign that stands right before the box."""
    before = before.removesuffix("\\")  # a response that was escaped twice
    if not before.endswith(("-", "\u2212", "- ", "\u2212 ")) or not _MINUS.search(before) or _LETTER.fullmatch(content):
        return content
    return f"-({content})" if _SUM.search(content) else f"-{content}"
