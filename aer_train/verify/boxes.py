r"""What is boxed: \boxed{..}, \fbox{..} and \boxed 5. A box that never closes was cut off, and is none."""

from __future__ import annotations

import re

MAX_BOXES = 50
"""Boxes at the end of a response that are looked at."""

MAX_BOX = 2000
"""Characters in which a box must close."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(\{)|(-?\d[\d,]*(?:\.\d+)?))")
_PLACEHOLDER = re.compile(r"\\h?phantom\{[^{}]*\}|\\q?quad|\\[ ,;!_]|\\l?dots|\\square|[\s.?_~]")
"""What a box holds that is to be filled in."""
_BRACE = re.compile(r"\\?[{}]")


def boxes(text: str) -> list[str]:
    r"""Return the different contents of \boxed{..} (and \fbox{..}, \boxed 5), in order, without empty ones."""
    found: list[str] = []
    start = len(text)
    for _ in range(MAX_BOXES):
        start = max(text.rfind("\\boxed", 0, start), text.rfind("\\fbox", 0, start))
        if start < 0:
            break
        match = _BOX.match(text, start)
        content = (match[2] or _balanced(text, match.end())) if match else ""
        while inner := _BOX.match(content):  # a box around a box
            content = inner[2] or _balanced(content, inner.end())
        if _PLACEHOLDER.sub("", content):
            found.append(content)
    return list(dict.fromkeys(reversed(found)))


def _balanced(text: str, start: int) -> str:
    """What stands before the brace that closes the one before `start`; empty when it does not close."""
    depth = 1
    for brace in _BRACE.finditer(text, start, start + MAX_BOX):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()].strip()
    return ""
