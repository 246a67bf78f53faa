"""Verdicts without worker processes, for tables of answers."""

from __future__ import annotations

from aer_train.verify.exact import judge
from aer_train.verify.symbolic import equal


def outcome(response: str, gold: str, lenient: bool = False) -> str:
    """Return what the verifier finds about a response."""
    judged = judge(response, gold, lenient)
    if judged.outcome is not None:
        return judged.outcome
    found = [equal(*question) for question in judged.questions]
    return next((verdict for verdict in found if verdict != "correct"), "correct")


def boxed(answer: str, gold: str) -> str:
    """Return what the verifier finds about a boxed answer."""
    return outcome(rf"so \boxed{{{answer}}}", gold)
