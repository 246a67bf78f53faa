"""Requests to servers: JSON in, JSON out, many at a time, again when a server does not answer, and one error that says what happened."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

T = TypeVar("T")

UNIX = "http+unix"
"""Scheme of a server on a Unix socket, whose file is the quoted host: http+unix://%2Ftmp%2Fsocket/health."""

ATTEMPTS = 4
PAUSE = 0.5
"""Seconds before the second attempt; each pause is twice as long as the one before."""


class _SocketConnection(HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(unquote(self.host))


_CONNECTIONS: dict[str, type[HTTPConnection]] = {"http": HTTPConnection, "https": HTTPSConnection, UNIX: _SocketConnection}


class Refused(ConnectionError):
    """A server answered that it cannot or will not."""

    def __init__(self, url: str, status: int, reason: str) -> None:
        super().__init__(f"{url} answered {status}: {reason}")
        self.status = status


def socket_url(file: Path) -> str:
    """Return the URL of a server that listens on a Unix socket."""
    return f"{UNIX}://{quote(str(file), safe='')}"


def call(url: str, body: Any = None, *, post: bool = True, timeout: float, headers: dict[str, str] | None = None) -> Any:
    """Return the JSON that a server answers, None for an empty answer. Proxies are not asked: servers of a cluster are not behind one.

    Args:
        url: http, https or http+unix (`UNIX`).
        body: sent as JSON, unless None.
        timeout: seconds without a byte from the server.
    Raises:
        Refused - an error status; TimeoutError - no answer in time; ConnectionError - no answer, or one that is not JSON.
    """
    parts, data = urlsplit(url), None if body is None else json.dumps(body)
    sent = {"Content-Type": "application/json", **(headers or {})}
    try:
        with closing(_CONNECTIONS[parts.scheme](parts.netloc, timeout=timeout)) as connection:
            connection.request("POST" if post else "GET", parts._replace(scheme="", netloc="").geturl(), data, sent)
            response = connection.getresponse()
            answer = response.read()
    except TimeoutError as error:
        raise TimeoutError(f"{url} did not answer within {timeout:g} s") from error
    except (OSError, HTTPException) as error:
        raise ConnectionError(f"{url} cannot be reached: {error or type(error).__name__}") from error
    if response.status >= 300:
        raise Refused(url, response.status, _reason(answer))
    try:
        return json.loads(answer) if answer else None
    except ValueError as error:
        raise ConnectionError(f"{url} must answer in JSON, got {answer[:100]!r}") from error


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
