"""Requests to servers: JSON in, JSON out, many at a time, again when a server does not answer, and one error that says what happened."""

from __future__ import annotations

import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from typing import Any, TypeVar

T = TypeVar("T")

ATTEMPTS = 4
PAUSE = 0.5
"""Seconds before the second attempt; each pause is twice as long as the one before."""

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # servers of a cluster are not behind a proxy


class Refused(ConnectionError):
    """A server answered that it cannot or will not."""

    def __init__(self, url: str, status: int, reason: str) -> None:
        super().__init__(f"{url} answered {status}: {reason}")
        self.status = status


def call(url: str, body: Any = None, *, post: bool = True, timeout: float, headers: dict[str, str] | None = None) -> Any:
    """Return the JSON that a server answers, None for an empty answer.

    Args:
        body: sent as JSON, unless None.
        timeout: seconds without a byte from the server.
    Raises:
        Refused - an error status; TimeoutError - no answer in time; ConnectionError - no answer, or one that is not JSON.
    """
    data = None if body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data, sent, method="POST" if post else "GET")
    try:
        with _opener.open(request, timeout=timeout) as response:
            answer = response.read()
        return json.loads(answer) if answer else None
    except urllib.error.HTTPError as error:
        raise Refused(url, error.code, _reason(error.read())) from error
    except TimeoutError as error:
        raise TimeoutError(f"{url} did not answer within {timeout:g} s") from error
    except json.JSONDecodeError as error:
        raise ConnectionError(f"{url} must answer in JSON, got {answer[:100]!r}") from error
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            raise TimeoutError(f"{url} did not answer within {timeout:g} s") from error
        raise ConnectionError(f"{url} cannot be reached: {reason or type(error).__name__}") from error


def ask(urls: Sequence[str], first: int, path: str, body: Any, *, timeout: float) -> Any:
    """Ask servers that can replace each other, from urls[first] on (modulo their number), until one answers.

    Raises:
        Refused - the request itself is refused (4xx); TimeoutError; ConnectionError - none has answered after ATTEMPTS attempts.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call(urls[(first + attempt) % len(urls)] + path, body, timeout=timeout)
        except ConnectionError as error:
            if isinstance(error, Refused) and error.status < 500:
                raise
            if attempt == ATTEMPTS - 1:
                raise ConnectionError(f"no answer in {ATTEMPTS} attempts, last: {error}") from error
        time.sleep(PAUSE * 2**attempt)
    raise AssertionError


def concurrently(jobs: Sequence[Callable[[], T]], threads: int) -> Iterator[tuple[int, T]]:
    """Run jobs in threads, and yield the place and the result of each as it ends. The first error is raised; what still runs is left."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[int, T | None, Exception | None]] = queue.SimpleQueue()
    given_up = threading.Event()

    def work() -> None:
        while not given_up.is_set():
            try:
                place = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                ended.put((place, jobs[place](), None))
            except Exception as error:
                ended.put((place, None, error))

    for place in range(len(jobs)):
        waiting.put(place)
    for _ in range(min(threads, len(jobs))):
        threading.Thread(target=work, daemon=True).start()  # daemons: a process that ends does not wait for answers
    try:
        for _ in jobs:
            place, result, error = ended.get()
            if error is not None:
                raise error
            yield place, result  # type: ignore[misc]
    finally:
        given_up.set()


def _reason(answer: bytes) -> str:
    """The message of a vLLM (or any) error."""
    try:
        found = json.loads(answer)
        error = found.get("error", found.get("detail", found))
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return answer[:200].decode(errors="replace")
