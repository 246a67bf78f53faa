r"""Inequalities, set builders and the real line, written as the intervals that they are; anything else stays as it is."""

from __future__ import annotations

import re

from aer_train.verify.latex import GREEK

_LESS, _MORE = r"(<|\\le(?![A-Za-z]))", r"(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z]))"
_BUILDER = re.compile(r"\\\{ ?[A-Za-z](?: ?\\in ?(?:\\mathbb\{R\}|R))? ?[|:] ?([^|:]+)\\\}")
_NAME = (
    rf"((?:[A-Za-z]|\\(?:{GREEK})(?![A-Za-z]))"
    r"(?: ?_ ?(?:\w|\{[^{}]*\}))?(?: ?\( ?[A-Za-z] ?\))?)"
)
"""x, \\theta, a_n or f(x)."""
_CHAIN = re.compile(rf"([^<>]+?) ?{_LESS} ?{_NAME} ?{_LESS} ?([^<>]+)")
_CHAIN_DOWN = re.compile(rf"([^<>]+?) ?(>|\\ge(?![A-Za-z])) ?{_NAME} ?(>|\\ge(?![A-Za-z])) ?([^<>]+)")
_RAY = re.compile(rf"{_NAME} ?{_MORE} ?([^<>=\\]*(?:\\(?:frac|sqrt|pi|ln|log|cdot)[^<>=\\]*)*)")
_RAY_REVERSED = re.compile(rf"([^<>=]+?) ?{_MORE} ?{_NAME}")
TURNED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
"""Signs as they are when read from the right."""

_MEMBER = re.compile(rf"{_NAME} ?\\in(?![A-Za-z]) ?")
_UNEQUAL = re.compile(rf"{_NAME} ?\\ne(?![A-Za-z]) ?([^=<>,]+)")
_LINE = re.compile(r"\\mathbb\{R\}")
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|ne)(?![A-Za-z])")


def is_inequality(text: str) -> bool:
    """Whether a cleaned text has <, >, \\le, \\ge or \\ne in it."""
    return bool(_INEQUALITY.search(text))


def without_builder(text: str) -> str:
    r"""Return the condition of \{x | x > 3\}; any other text stays as it is."""
    builder = _BUILDER.fullmatch(text)
    return builder[1].strip() if builder else text


def as_interval(text: str) -> str:
    r"""Write -1 < x \le 2, x \ge 3, 3 > x, x \ne 0, x \in (..) and \mathbb{R} as intervals."""
    return named_interval(text)[1]


def as_member(text: str) -> str:
    r"""Write an inequality as x \in (..), which keeps its name; anything else stays as it is."""
    name, interval = named_interval(text)
    return rf"{name} \in {interval}" if name else interval


def named_interval(text: str) -> tuple[str, str]:
    """Return what an inequality is about, and the interval that it is; an empty name and the text itself for anything else."""
    if "<" not in text and ">" not in text and "\\" not in text:
        return "", text
    name = ""
    if member := _MEMBER.match(text):
        name, text = member[1], text[member.end() :]
    if _LINE.fullmatch(text):
        return name, r"(-\infty,\infty)"
    if unequal := _UNEQUAL.fullmatch(text):
        return unequal[1], rf"\mathbb{{R}} \setminus \{{{unequal[2].strip()}\}}"
    if chain := _CHAIN.fullmatch(text):
        return chain[3], f"{'(' if chain[2] == '<' else '['}{chain[1]},{chain[5]}{')' if chain[4] == '<' else ']'}"
    if chain := _CHAIN_DOWN.fullmatch(text):
        return chain[3], f"{'(' if chain[4] == '>' else '['}{chain[5]},{chain[1]}{')' if chain[2] == '>' else ']'}"
    if ray := _RAY.fullmatch(text):
        name, sign, bound = ray.groups()
    elif ray := _RAY_REVERSED.fullmatch(text):
        name, bound, sign = ray[3], ray[1], TURNED[ray[2]]
    else:
        return name, text
    if sign in ("<", "\\le"):
        return name, f"(-\\infty,{bound}{')' if sign == '<' else ']'}"
    return name, f"{'(' if sign == '>' else '['}{bound},\\infty)"
