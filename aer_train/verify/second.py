"""A second opinion on saved responses: another rule, in killable processes of its own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from aer_train.types import Question
from aer_train.verify.extract import extract, gold_answer
from aer_train.verify.latex import clean, squeeze
from aer_train.verify.pool import Pool, Reply
from aer_train.verify.scorers import Function


class SecondRule:
    """Another verdict on the same responses.

    exact: the last boxed or stated answer is the gold answer, letter by letter but for spacing and the spelling of LaTeX.
    math_verify: the library, called on the whole response as its documentation says.
    A dotted path: a function of response and answer that gives a number in [0, 1], where 1 is correct.
    None: no opinion.
    """

    def __init__(self, rule: str | None, timeout: float, workers: int) -> None:
        self.rule = rule
        self._pool: Pool | None = None
        self._function: Function | None = None
        if rule is None or rule == "exact":
            return
        if rule == "math_verify":
            self._pool = Pool(f"{__name__}.by_math_verify", timeout, workers, warm_up=("$1+x$", "x+1"))
        else:
            self._function = Function("--second", rule, "exact, math_verify, none", timeout, workers)
            self._function.check("--second", Question("", ""))

    def __enter__(self) -> SecondRule:
        return self

    def __exit__(self, *_: object) -> None:
        for processes in (self._pool, self._function):
            if processes is not None:
                processes.close()

    def submit(self, pairs: Sequence[tuple[str, str]]) -> Opinions:
        """Start grading; a missing opinion is None, a timeout or a crash is told as such."""
        if self._function is not None:
            return Opinions([self._function.submit(Question(response, gold)) for response, gold in pairs])
        if self._pool is not None:
            return Opinions([self._pool.submit(response, gold) for response, gold in pairs])
        return Opinions([None if self.rule is None else by_text(response, gold) for response, gold in pairs])


class Opinions:
    """Opinions to come: correct, wrong, timeout, crash, or None."""

    def __init__(self, opinions: Sequence[str | Future[Reply] | None]) -> None:
        self._opinions = opinions

    def result(self) -> list[str | None]:
        """Wait, and return them in order."""
        return [_opinion(found.result()) if isinstance(found, Future) else found for found in self._opinions]


def by_text(response: str, gold: str) -> str:
    """The rule named exact."""
    answers, expected = extract(response), gold_answer(gold)
    return "correct" if answers and _text(answers[-1]) == _text(expected) else "wrong"


def by_math_verify(response: str, gold: str) -> float:
    """The rule named math_verify; its own timeouts are off, for the parent has the clock."""
    import logging

    from math_verify import parse, verify

    logging.disable(logging.WARNING)
    expected = parse(f"${gold_answer(gold)}$", parsing_timeout=None)
    return float(verify(expected, parse(response, parsing_timeout=None), timeout_seconds=None))


def _text(answer: str) -> str:
    return squeeze(clean(answer[:1000])).rstrip(".")


def _opinion(reply: Reply) -> str:
    if reply.status != "ok":
        return reply.status
    return "correct" if reply.value == 1 else "wrong"
