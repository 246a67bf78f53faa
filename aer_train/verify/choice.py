r"""Choices: the letter of an answer like C, (C), \text{(C)}, C: 42, (B), No, Option A, and what stands beside it."""

from __future__ import annotations

import re
from typing import NamedTuple

from aer_train.verify.brackets import enclosing, inside


class Choice(NamedTuple):
    """A choice; both are empty for anything else."""

    letter: str
    beside: str
    """What the letter stands for, as far as it is said."""


_TEXT = re.compile(r"\\text ?\{ ?(\(?[A-J]\)?[).:]?|\([a-h]\)) ?\}|\\text ?\{ ?(\([A-J]\)|[A-J][).:]) ?(?=[^{}]+\})")
_CHOICE = re.compile(
    r"(?:\\text ?\{ ?)?(?:(?:the )?(?:correct )?(?:option|choice|answer)(?: is)?:? ?\}? ?)?"
    r"(?:\( ?([A-J]) ?\)[.:]?|([A-J])[).:]|([A-J])(?= \()|([A-J])(?=$|, ))(.*)",
    re.IGNORECASE,
)
_BEHIND = re.compile(r"((?!Sin|Cos|Tan|Log|Exp|Det|Area|Vol)[A-Z][a-z]{2,}[^()]*|-?\d[\d.,]*) \( ?([A-J]) ?\)")  # Tokyo (D)
_OPERATED = re.compile(r" ?[+*/^=!_<>;:&|]|-")  # (C)+1 is no choice, (C) -1 is
_WORDS = re.compile(r", (?:\\text ?\{ ?)?[A-Za-z][a-z]")  # B, No; but not I, III and V
_CLOCK = re.compile(r"\b[AP]\.M\b\.?")
_ANOTHER = re.compile(
    r"^(?:\\text ?\{ ?)?(?:or|and|not|but)\b|(?<![A-Za-z(\\])\(? ?[A-J] ?\)?(?=$|[,;.:])|\([A-J]\)|\b(?:or|not|isn't|wrong)\b"
)


def choice(text: str) -> Choice:
    """Read a cleaned text as a choice. Two letters are none, and neither is a letter times something."""
    if len(text) == 1:
        return Choice(text, "") if text in "ABCDEFGHIJ" else Choice("", "")
    if not ("(" in text or text[1:2] in ").:," or text[:1] in "\\{" or text[:1].casefold() in "toca"):
        return Choice("", "")
    plain = _TEXT.sub(_unmarked, text).strip()
    for _ in range(2):
        plain = inside(plain, "{}") if enclosing(plain) == "{}" else plain
    match = _CHOICE.fullmatch(plain)
    if match is None:
        behind = _BEHIND.fullmatch(plain)
        return Choice(behind[2], behind[1].strip()) if behind and not _ANOTHER.search(behind[1]) else Choice("", "")
    letter = next(group for group in match.groups()[:4] if group)
    rest = match[5]
    beside = rest.strip(" ,.")
    if enclosing(beside) == "()" and "," not in beside:  # A (Connor)
        beside = inside(beside, "()")
    if letter in "abcdefgh" and match[1] and not beside:
        letter = letter.upper()
    if (
        not letter.isupper()
        or _OPERATED.match(rest)
        or (rest.startswith(",") and not _WORDS.match(rest))
        or _ANOTHER.search(_CLOCK.sub("", beside))
    ):
        return Choice("", "")
    return Choice(letter, beside)


def _unmarked(match: re.Match[str]) -> str:
    return match[1] if match[1] else match[2] + " \\text{"
