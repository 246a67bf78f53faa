"""A reward that a server computes: questions go out in batches, by several threads, and again when the server does not answer.

POST URL    {"prompts": [..], "completions": [..], COLUMN: [..], ...}      what TRL calls a reward function with
answer      {"rewards": [..]}                                              a number for each completion, null for none
"""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Literal

from aer_train.rollout.http import Refused, call
from aer_train.types import Question
from aer_train.verify.pool import Reply
from aer_train.verify.signature import as_batch

BATCH = 64
"""Most completions of a request: those that wait when a thread becomes free, nobody waits for more."""

PAUSE = 0.5
"""Seconds before the second attempt; each pause is twice as long as the one before."""

BUSY = 429
"""The status below 500 after which it is worth asking again."""

Item = tuple[Question, Future[Reply]]


def is_url(path: str) -> bool:
    """Whether a reward is served rather than called."""
    return path.startswith(("http://", "https://", "http+unix://"))


class Served:
    """Asks a server; each answer is a `Reply`, and so is what became of a request without one."""

    def __init__(self, url: str, timeout: float, retries: int, threads: int) -> None:
        """
        Args:
            timeout: seconds without a byte from the server.
            retries: further attempts after no answer, an error of the server (5xx) or 429.
            threads: requests at the same time.
        """
        self.url, self._timeout, self._retries, self._threads = url, timeout, retries, threads
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._waiting: set[Future[Reply]] = set()
        self._started = self._closed = False

    def submit(self, question: Question) -> Future[Reply]:
        """Return the reply to come."""
        if not self._started:
            self._started = True
            for _ in range(self._threads):
                threading.Thread(target=self._work, daemon=True).start()  # daemons: a process that ends does not wait for answers
        future: Future[Reply] = Future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        self._queue.put((question, future))
        return future

    def check(self, name: str, question: Question) -> None:
        """Prove that the server answers, by one question.

        Args:
            name: of the option.
        Raises:
            ValueError - it does not.
        """
        reply = self._ask([question])[0]
        if reply.status != "ok":
            raise ValueError(f"{name} must be the URL of a server that answers, got {self.url!r}: {reply.value}")

    def close(self) -> None:
        """Cancel what has no answer yet. May be called again."""
        self._closed = True
        for future in list(self._waiting):
            future.cancel()
        self._queue.put(None)

    def _work(self) -> None:
        while items := self._take():
            for (_, future), reply in zip(items, self._ask([question for question, _ in items]), strict=True):
                with suppress(InvalidStateError):  # cancelled meanwhile
                    future.set_result(reply)

    def _take(self) -> list[Item]:
        """Wait for a question, and return it with those that wait beside it; none when this is closed."""
        items: list[Item] = []
        with suppress(queue.Empty):
            while len(items) < BATCH:
                item = self._queue.get(block=not items)
                if item is None:
                    self._queue.put(None)  # for the other threads
                    return []
                items.append(item)
        return items

    def _ask(self, questions: Sequence[Question]) -> list[Reply]:
        start = time.perf_counter()
        try:
            rewards = self._request(as_batch(questions), len(questions))
        except (ConnectionError, TimeoutError, ValueError, LookupError) as error:
            status: Literal["timeout", "crash"] = "timeout" if isinstance(error, TimeoutError) else "crash"
            return [Reply(status, str(error), time.perf_counter() - start)] * len(questions)
        seconds = (time.perf_counter() - start) / len(questions)
        return [Reply("ok", reward, seconds) for reward in rewards]

    def _request(self, body: dict[str, list[Any]], count: int) -> list[float | None]:
        for attempt in range(self._retries + 1):
            try:
                return _rewards(self.url, call(self.url, body, timeout=self._timeout), count)
            except (ConnectionError, TimeoutError) as error:
                final = isinstance(error, Refused) and error.status < 500 and error.status != BUSY
                if final or attempt == self._retries or self._closed:
                    raise
            time.sleep(PAUSE * 2**attempt)
        raise AssertionError


def _rewards(url: str, answer: Any, count: int) -> list[float | None]:
    """What an answer says of `count` completions."""
    found = answer.get("rewards") if isinstance(answer, dict) else answer
    if isinstance(found, list) and len(found) == count and all(map(_is_reward, found)):
        return found
    shown = json.dumps(answer)[:200]
    raise ValueError(f'{url} must answer {{"rewards": [..]}} with {count} finite numbers or null, got {shown}')


def _is_reward(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))
