"""The verdict on a response as far as it can be given without symbolic mathematics, and the questions that are left."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

from aer_train.verify.choice import choice
from aer_train.verify.equality import MAX_ANSWER, is_text, same_answer, stated
from aer_train.verify.extract import extract, gold_answer
from aer_train.verify.quantity import in_base, quantity
from aer_train.verify.shape import ORDERED, shape

MAX_SYMBOLIC = 300
"""Characters; a longer answer is not looked at symbolically."""

MAX_QUESTIONS = 4
"""A response with more different boxed answers that are not decided exactly is wrong."""


class Judgement(NamedTuple):
    """What is known about a response."""

    outcome: Literal["correct", "wrong", "no_answer", "gold_unparseable"] | None
    """None when it hangs on the questions: then all of them must be answered with yes."""
    extracted: str | None
    questions: list[tuple[str, str]]
    """(answer, gold answer)."""


def judge(response: str, gold: str, lenient: bool = False) -> Judgement:
    """Extract the answer and compare it exactly with the gold answer.

    Args:
        lenient: percent signs and the brackets around a list count for nothing (the order in a gold tuple does), and of several boxes
            the last one counts.
    """
    expected = _gold(gold)
    if not expected:
        return Judgement("gold_unparseable", None, [])
    answers = extract(response)
    if not answers:
        return Judgement("no_answer", None, [])
    extracted = ", ".join(answers)
    if len(expected) > MAX_ANSWER and answers != [expected]:
        return Judgement("gold_unparseable", extracted, [])
    if len(answers) > 1 and _is_list(expected):
        answers = [extracted]  # each part of a list in its own box
    if lenient:
        ordered = shape(stated(expected)).kind in ORDERED
        answers, expected = [_loosely(answers[-1], ordered)], _loosely(expected, ordered)
    verdicts = [same_answer(answer, expected) for answer in answers]
    if False in verdicts:
        return Judgement("wrong", extracted, [])
    questions = [(answer, expected) for answer, verdict in zip(answers, verdicts, strict=True) if verdict is None]
    if not questions:
        return Judgement("correct", extracted, [])
    if len(expected) > MAX_SYMBOLIC:
        return Judgement("gold_unparseable", extracted, [])
    if len(questions) > MAX_QUESTIONS or any(len(answer) > MAX_SYMBOLIC for answer, _ in questions):
        return Judgement("wrong", extracted, [])
    return Judgement(None, extracted, questions)


def readable(gold: str) -> bool | None:
    """Return whether an answer can be compared with this gold answer; None when that takes symbolic mathematics to know."""
    text = stated(_gold(gold)[: MAX_SYMBOLIC + 1])
    if not text or len(text) > MAX_SYMBOLIC:
        return False
    return True if quantity(text, gold=True) or in_base(text) or is_text(text) or choice(text).letter else None


def _loosely(text: str, ordered: bool) -> str:
    """The text without percent signs, its parts in brackets only where their order counts."""
    text = stated(text[:MAX_ANSWER]).replace("%", "")
    taken = shape(text)
    if taken.kind not in ("list", "set", *ORDERED):
        return text
    return f"({', '.join(taken.parts)})" if ordered else ", ".join(taken.parts)


@lru_cache(maxsize=10_000)
def _gold(gold: str) -> str:
    return gold_answer(gold)


@lru_cache(maxsize=10_000)
def _is_list(expected: str) -> bool:
    return shape(stated(expected)).kind in ("list", "set")
