r"""Inequalities, set builders and the real line, written as the intervals that they are; anything else stays as it is."""

from __future__ import annotations

import re

_LESS, _MORE = r"(<|\\le(?![A-Za-z]))", r"(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z]))"
_BUILDER = re.compile(r"\\\{ ?[A-Za-z](?: ?\\in ?(?:\\mathbb\{R\}|R))? ?[|:] ?([^|:]+)\\\}")
_NAME = (
    r"((?:[A-Za-z]|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|rho|sigma|tau|phi|psi|omega)(?![A-Za-z]))"
    r"(?: ?_ ?(?:\w|\{[^{}]*\}))?(?: ?\( ?[A-Za-z] ?\))?)"
)
"""x, \\theta, a_n or f(x)."""
_CHAIN = re.compile(rf"([^<>]+?) ?{_LESS} ?{_NAME} ?{_LESS} ?([^<>]+)")
_CHAIN_DOWN = re.compile(rf"([^<>]+?) ?(>|\\ge(?![A-Za-z])) ?{_NAME} ?(>|\\ge(?![A-Za-z])) ?([^<>]+)")
_RAY = re.compile(rf"{_NAME} ?{_MORE} ?([^<>=\\]*(?:\\(?:frac|sqrt|pi|ln|log|cdot)[^<>=\\]*)*)")
_RAY_REVERSED = re.compile(rf"([^<>=]+?) ?{_MORE} ?{_NAME}")
_TURNED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
_MEMBER = re.compile(r"[A-Za-z] ?\\in(?![A-Za-z]) ?")
_UNEQUAL = re.compile(r"[A-Za-z] ?\\ne(?![A-Za-z]) ?([^=<>,]+)")
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
    if "<" not in text and ">" not in text and "\\" not in text:
        return text
    if member := _MEMBER.match(text):
        text = text[member.end() :]
    if _LINE.fullmatch(text):
        return r"(-\infty,\infty)"
    if unequal := _UNEQUAL.fullmatch(text):
        return rf"\mathbb{{R}} \setminus \{{{unequal[1].strip()}\}}"
    if chain := _CHAIN.fullmatch(text):
        return f"{'(' if chain[2] == '<' else '['}{chain[1]},{chain[5]}{')' if chain[4] == '<' else ']'}"
    if chain := _CHAIN_DOWN.fullmatch(text):
        return f"{'(' if chain[4] == '>' else '['}{chain[5]},{chain[1]}{')' if chain[2] == '>' else ']'}"
    if ray := _RAY.fullmatch(text):
        sign, bound = ray[2], ray[3]
    elif ray := _RAY_REVERSED.fullmatch(text):
        bound, sign = ray[1], _TURNED[ray[2]]
    else:
        return text
    if sign in ("<", "\\le"):
        return f"(-\\infty,{bound}{')' if sign == '<' else ']'}"
    return f"{'(' if sign == '>' else '['}{bound},\\infty)"
