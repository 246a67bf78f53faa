"""Rewards of the drill, named by dotted path. They run in the verifier's worker processes."""

from __future__ import annotations

import time

from aer_train.tasks import task

SECONDS = 0.002
"""What grading an answer takes: long enough for a kill to meet it."""


def slow(response: str, answer: str) -> float:
    """The embedded task's reward."""
    time.sleep(SECONDS)
    return task("countdown").score(response, answer)


def hanging(response: str, answer: str) -> float:
    """As `slow`, but some answers never come back."""
    while stuck(answer):
        time.sleep(60)
    return slow(response, answer)


def without_stuck(response: str, answer: str) -> float:
    """What `hanging` amounts to when the verifier gives the stuck ones up."""
    return 0.0 if stuck(answer) else slow(response, answer)


def stuck(answer: str) -> bool:
    """About one prompt in eleven."""
    return answer.endswith("7")
