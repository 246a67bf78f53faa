"""Several gold answers to one problem: a response is right if it is right by any of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from aer_train.types import Prompt, Verdict
from aer_train.verify.verifier import Pending, Verifier

RANK = ("gold_unparseable", "no_answer", "wrong", "crash", "timeout", "correct")
"""Of two outcomes with the same reward, the later one stands: one that could not be told apart from correct is not called wrong."""


def submit(verifier: Verifier, asked: Sequence[Sequence[Any]]) -> PendingBest:
    """Start grading each response by its alternatives, and return at once what is to come.

    Args:
        asked: for each response, what `Verifier.submit` takes of it, once for each gold answer.
    """
    return PendingBest(
        verifier.submit([question for questions in asked for question in questions]), [len(questions) for questions in asked]
    )


@dataclass(frozen=True)
class PendingBest:
    """Verdicts to come, one for each response."""

    pending: Pending
    counts: list[int]

    def result(self) -> list[Verdict]:
        """Wait, and return the best verdict of each response; its time is that of all of them."""
        each = iter(self.pending.result())
        return [best([next(each) for _ in range(count)]) for count in self.counts]


def best(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict that stands of those by several gold answers: the highest reward, then by RANK, then the first."""
    if len(verdicts) == 1:
        return verdicts[0]
    chosen = max(verdicts, key=lambda verdict: (verdict.reward, RANK.index(verdict.outcome)))
    return replace(chosen, seconds=sum(verdict.seconds for verdict in verdicts))


class Reader(Protocol):
    """Who knows which gold answers can be read."""

    def unparseable(self, answers: Sequence[str]) -> list[int]:
        """Return the indices of those that cannot."""


def unreadable(verifier: Reader, prompts: Sequence[Prompt]) -> list[int]:
    """Return which prompts have no gold answer that can be read."""
    places = [place for place, prompt in enumerate(prompts) for _ in prompt.golds]
    bad = set(verifier.unparseable([gold for prompt in prompts for gold in prompt.golds]))
    readable = {place for number, place in enumerate(places) if number not in bad}
    return [place for place in range(len(prompts)) if place not in readable]


def stored(prompt: Prompt) -> str | None:
    """Return the further gold answers as a column of saved responses: a JSON list, None where there are none."""
    return json.dumps(prompt.others) if prompt.others else None


def restored(answer: str, others: str | None) -> list[str]:
    """Return all gold answers of a saved response from its columns answer and other_answers.

    Raises:
        ValueError - other_answers is not what `stored` gives.
    """
    found = json.loads(others) if others else []
    if not isinstance(found, list) or not all(isinstance(gold, str) for gold in found):
        raise ValueError(f"other_answers must be a JSON list of texts, got {others!r}")
    return [answer, *found]
