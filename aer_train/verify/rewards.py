"""Several rewards as one: reward.kind says what is right, reward.functions add to what is rewarded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from aer_train.config.tree import RewardConfig
from aer_train.tasks import check_rule
from aer_train.types import Prompt, Question, Verdict
from aer_train.verify import alternatives
from aer_train.verify.alternatives import PendingBest
from aer_train.verify.pool import Reply
from aer_train.verify.scorers import Scorer, open_scorer
from aer_train.verify.served import is_url
from aer_train.verify.verifier import OUT_OF_RANGE, Verifier

OPTION = "reward.functions"


class Rewards:
    """Grades responses by what the section reward says; use it as a context manager, or call `close`.

        reward = w0 * reward.kind(response) + sum_i w_i * functions_i(response)

    A function that gives None, or fails, adds nothing; which one failed is in the verdict.
    """

    def __init__(self, config: RewardConfig) -> None:
        """config: as `check_config` has found it right."""
        self.config = config
        served = (config.request_timeout, config.retries)
        self._verifier = Verifier(config.kind, config.timeout, config.workers, config.lenient, *served)
        self._scorers: list[Scorer] = []
        self._close = ExitStack()
        self._close.callback(self._verifier.close)
        try:
            for path in config.functions:
                self._scorers.append(open_scorer(OPTION, path, "a URL", config.timeout, config.workers, *served))
                self._close.callback(self._scorers[-1].close)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Rewards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self, prompts: Sequence[Prompt], source: str) -> None:
        """Prove that what is asked about these prompts can be answered: embedded tasks are judged by their own rule, functions get the
        columns that they need, and servers answer.

        Raises:
            ValueError - naming the option and what is missing.
        """
        check_rule(self.config.kind, source)
        kinds = {(frozenset(prompt.columns), prompt.messages is None): prompt for prompt in reversed(prompts)}
        for prompt in kinds.values():
            question = question_of(prompt, "")
            try:
                self._verifier.check(question)
                for scorer in self._scorers:
                    scorer.check(OPTION, question)
            except ValueError as error:
                raise ValueError(f"{error} (prompt {prompt.id} of {source})") from error

    def submit(self, questions: Sequence[tuple[Any, ...]]) -> PendingSum:
        """Start grading, and return what is to come. A response is right by any of its gold answers; functions see the first.

        Args:
            questions: (response text, gold answer), or more of a `Question`.
        """
        asked = [Question(*question) for question in questions]
        by_gold = [[question._replace(answer=gold, others=()) for gold in (question.answer, *question.others)] for question in asked]
        replies = [[scorer.submit(question) for scorer in self._scorers] for question in asked]
        return PendingSum(alternatives.submit(self._verifier, by_gold), replies, self.config)

    def unparseable(self, answers: Sequence[str]) -> list[int]:
        """Return the indices of gold answers that reward.kind cannot read."""
        return self._verifier.unparseable(answers)

    def close(self) -> None:
        """End all processes and requests. May be called again."""
        self._close.close()


class PendingSum:
    """Verdicts to come, of several functions each."""

    def __init__(self, verdicts: PendingBest, replies: Sequence[Sequence[Future[Reply]]], config: RewardConfig) -> None:
        self._verdicts, self._replies, self._config = verdicts, replies, config

    def result(self) -> list[Verdict]:
        """Wait, and return the verdicts in order.

        Raises:
            ValueError - reward.kind gave something else than a number in [0, 1], or the rewards were closed before;
            ChildProcessError - something failed, and reward.on_failure is stop; others as `Pending.result`.
        """
        verdicts = self._verdicts.result()
        wrong = next((verdict.detail for verdict in verdicts if verdict.detail.startswith(OUT_OF_RANGE)), None)
        if wrong is not None:
            raise ValueError(f"{wrong} from {self._config.kind}")
        try:
            judged = [self._sum(verdict, [reply.result() for reply in row]) for verdict, row in zip(verdicts, self._replies, strict=True)]
        except CancelledError:
            raise ValueError("rewards must be open until their verdicts are there, got some that were closed") from None
        failed = next((verdict for verdict in judged if not verdict.judged), None)
        if failed is not None and self._config.on_failure == "stop":
            raise ChildProcessError(f"reward.on_failure stop: {failed.failure}")
        return judged

    def _sum(self, verdict: Verdict, replies: Sequence[Reply]) -> Verdict:
        config = self._config
        if not config.functions and not config.weights:
            return verdict
        names, weights = names_of(config), weights_of(config)
        found = [_score(reply) for reply in replies]
        scores: dict[str, float | None] = {names[0]: verdict.reward if verdict.judged else None}
        scores |= {name: score for name, (score, _) in zip(names[1:], found, strict=True)}
        failed = [] if verdict.judged else [(names[0], verdict.detail)]
        failed += [(name, detail) for name, (_, detail) in zip(names[1:], found, strict=True) if detail]
        return replace(
            verdict,
            reward=math.fsum(weight * score for weight, score in zip(weights, scores.values(), strict=True) if score is not None),
            seconds=verdict.seconds + sum(reply.seconds for reply in replies),
            detail="; ".join(f"{name}: {detail}" for name, detail in failed) if failed else verdict.detail,
            scores=scores,
            failed=tuple(name for name, _ in failed),
            kind_reward=verdict.reward,
        )


def _score(reply: Reply) -> tuple[float | None, str]:
    """A score, and what is wrong with it."""
    value = reply.value
    if reply.status != "ok":
        return None, f"{reply.status}: {value}"
    if value is None:
        return None, ""
    if isinstance(value, str) or not math.isfinite(value):
        return None, f"crash: a reward must be a finite number or None, got {value!r}"[:200]
    return float(value), ""


def names_of(config: RewardConfig) -> list[str]:
    """Return the names of reward.kind and of each of reward.functions in metrics: the last part of a path where that is enough."""
    paths = [config.kind, *config.functions]
    short = [path.split("://", 1)[1] if is_url(path) else path.rpartition(".")[2] for path in paths]
    return [name if short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)]


def weights_of(config: RewardConfig) -> tuple[float, ...]:
    """Return the weight of reward.kind and of each of reward.functions."""
    return config.weights or (1.0,) * (1 + len(config.functions))


def question_of(prompt: Prompt, response: str) -> Question:
    """Return what rewards see of a response to a prompt."""
    return Question(response, prompt.answer, prompt.text, prompt.columns, prompt.messages, prompt.others)
