"""Verified rewards: an exact comparison first, then symbolic equality in worker processes that can be killed.

Outcomes are data: correct, wrong, no_answer, gold_unparseable, timeout and crash are counted apart, and one hostile answer costs at most
its deadline, never the run.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from typing import Any

from aer_train.tasks import TASKS
from aer_train.types import Question, Verdict
from aer_train.verify.exact import judge, readable
from aer_train.verify.extract import gold_answer, opened_thinking
from aer_train.verify.pool import Pool, Reply
from aer_train.verify.scorers import Scorer, open_scorer

MATH_BYTES = 1 << 30
"""Memory that a symbolic comparison may take."""

MEMORY = 20_000
"""Symbolic comparisons whose result is remembered: the samples of a group often give the same answer."""

OUT_OF_RANGE = "reward.kind must give a number in [0, 1], got"
"""What is wrong with a verdict of a function that gave something else."""

AT_ONCE = 10_000
"""Responses that `score_many` has under way: what it needs beside its result is bounded."""


class Verifier:
    """Grades responses; use it as a context manager, or call `close`. It may be used from any thread.

    with Verifier(timeout=5.0, workers=2) as v:
        verdicts = v.score_many([(response_text, gold_answer), ...])
    """

    def __init__(
        self,
        kind: str = "math",
        timeout: float = 5.0,
        workers: int = 2,
        lenient: bool = False,
        request_timeout: float = 60.0,
        retries: int = 3,
    ) -> None:
        """
        Args:
            kind: "math", the name of an embedded task, a dotted path to a function of (response, answer) or of other names (`signature`)
                that gives a number in [0, 1], or the URL of a server that does (`served`).
            timeout: seconds for one response, > 0.
            workers: processes (or requests at the same time), >= 1. They start when the first response needs one.
            lenient: for math; see `exact.judge`. A policy that is trained on it learns to exploit it.
            request_timeout, retries: for a URL; see `served.Served`.
        """
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be > 0 and finite, got {timeout}")
        if workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}")
        if lenient and kind != "math":
            raise ValueError(f"lenient must be False for kind {kind}, got True")
        self.kind, self.timeout, self.lenient = kind, timeout, lenient
        self._task = TASKS.get(kind)
        self._pool = Pool("aer_train.verify.symbolic.equal", timeout, workers, warm_up=("x+1", "1+x"), memory_bytes=MATH_BYTES)
        self._scorer: Scorer | None = None
        if kind != "math" and self._task is None:
            others = "math, an embedded task, a URL"
            self._scorer = open_scorer("reward.kind", kind, others, timeout, workers, request_timeout, retries)
        self._asked: dict[tuple[str, str], Future[Reply]] = {}
        self._pid, self._closed = os.getpid(), False

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, pairs: Sequence[tuple[Any, ...]]) -> Pending:
        """Start grading and return at once what is to come, so that other work can go on meanwhile.

        Args:
            pairs: (response text, gold answer), or more of a `Question`.
        """
        if self._closed:
            raise ValueError("verifier must be open, got one that was closed")
        return Pending([self._judge(_checked(Question(*pair))) for pair in pairs])

    def check(self, question: Question) -> None:
        """Raise ValueError unless such questions can be graded; a server is asked this one."""
        if self._scorer is not None:
            self._scorer.check("reward.kind", question)

    def score_many(self, pairs: Sequence[tuple[Any, ...]]) -> list[Verdict]:
        """Return a verdict for each (response text, gold answer) or `Question`, in order."""
        parts = (self.submit(pairs[start : start + AT_ONCE]) for start in range(0, len(pairs), AT_ONCE))
        return [verdict for part in parts for verdict in part.result()]

    def unparseable(self, answers: Sequence[str]) -> list[int]:
        """Return the indices of gold answers that cannot be read, to be told before a run starts."""
        if self._task is not None:
            return [i for i, answer in enumerate(answers) if not self._task.readable(answer)]
        if self._scorer is not None:
            return []
        known = [readable(answer) for answer in answers]
        asked = {i: self._ask("", gold_answer(answers[i])) for i, found in enumerate(known) if found is None}
        unreadable = [i for i, reply in asked.items() if reply.result().value != "wrong"]
        return sorted([*unreadable, *(i for i, found in enumerate(known) if found is False)])

    def close(self) -> None:
        """End the worker processes. May be called again."""
        self._closed = True
        self._pool.close()
        if self._scorer is not None:
            self._scorer.close()

    def _judge(self, question: Question) -> Verdict | _Waiting:
        start, response, gold = time.perf_counter(), question.response, question.answer
        if self._task is not None:
            right = self._task.score(response, gold)
            return Verdict("correct" if right else "wrong", right, response[:16], time.perf_counter() - start)
        if self._scorer is not None:
            return _Waiting(None, [self._scorer.submit(question)])
        judged = judge(opened_thinking(question.prompt) + response, gold, self.lenient)
        if judged.outcome is None:
            return _Waiting(judged.extracted, [self._ask(*question) for question in judged.questions])
        return Verdict(judged.outcome, float(judged.outcome == "correct"), judged.extracted, time.perf_counter() - start)

    def _ask(self, answer: str, gold: str) -> Future[Reply]:
        """The symbolic comparison, shared with whoever asked for the same one; after a timeout or a crash it is tried again."""
        if os.getpid() != self._pid:  # replies to a process that was forked never come
            self._pid, self._asked = os.getpid(), {}
        known = self._asked.get((answer, gold))
        if known is not None and not (known.done() and (known.exception() or known.result().status != "ok")):
            return known
        if len(self._asked) >= MEMORY:
            self._asked = {}
        self._asked[answer, gold] = reply = self._pool.submit(answer, gold)
        return reply


class Pending:
    """Verdicts of which some are still being found."""

    def __init__(self, verdicts: list[Verdict | _Waiting]) -> None:
        self._verdicts = verdicts

    def result(self) -> list[Verdict]:
        """Wait, and return the verdicts in the order of the pairs.

        Raises:
            ChildProcessError - no process can be started; ImportError - a process cannot load the reward function;
            ValueError - the verifier was closed before.
        """
        try:
            return [verdict if isinstance(verdict, Verdict) else verdict.result() for verdict in self._verdicts]
        except CancelledError:
            raise ValueError("verifier must be open until its verdicts are there, got one that was closed") from None


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A response whose verdict needs a process."""

    extracted: str | None
    """None for a custom reward."""
    replies: list[Future[Reply]]
    """All of them must find the answer correct."""

    def result(self) -> Verdict:
        verdicts = [self._verdict(reply.result()) for reply in self.replies]
        worst = min(verdicts, key=lambda verdict: verdict.reward)
        return replace(worst, seconds=sum(verdict.seconds for verdict in verdicts))

    def _verdict(self, reply: Reply) -> Verdict:
        if reply.status != "ok":
            return Verdict(reply.status, 0.0, self.extracted, reply.seconds, reply.value)
        if self.extracted is not None:
            return Verdict(reply.value, float(reply.value == "correct"), self.extracted, reply.seconds)
        if reply.value is None or isinstance(reply.value, str) or not 0 <= reply.value <= 1:
            return Verdict("crash", 0.0, None, reply.seconds, f"{OUT_OF_RANGE} {reply.value!r}"[:200])
        return Verdict("correct" if reply.value == 1 else "wrong", float(reply.value), None, reply.seconds)


def _checked(question: Question) -> Question:
    response, gold = question.response, question.answer
    if not isinstance(response, str) or not isinstance(gold, str):
        raise TypeError(f"pairs must hold (response text, gold answer) as str, got {type(response).__name__} and {type(gold).__name__}")
    return question
