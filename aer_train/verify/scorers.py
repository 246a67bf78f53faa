"""What gives a number for a response and is not part of the package: a function in processes of its own, or a server."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from aer_train.types import Question
from aer_train.verify.pool import Pool, Reply
from aer_train.verify.served import Served, is_url
from aer_train.verify.signature import check_function


class Scorer(Protocol):
    """A function or a server."""

    def submit(self, question: Question) -> Future[Reply]:
        """Return the reply to come: a number, or None where there is none to give."""

    def check(self, name: str, question: Question) -> None:
        """Raise ValueError, naming the option, unless such questions can be asked."""

    def close(self) -> None:
        """End it. May be called again."""


class Function:
    """A function by its dotted path."""

    def __init__(self, name: str, path: str, others: str, timeout: float, workers: int) -> None:
        """name, others: of the option, and what it may be besides a dotted path."""
        self.path = path
        self.signature = check_function(name, path, others)
        self.pool = Pool(path, timeout, workers)

    def submit(self, question: Question) -> Future[Reply]:
        """Return the reply to come."""
        arguments, named = self.signature.arguments(question)
        return self.pool.submit(*arguments, **named)

    def check(self, name: str, question: Question) -> None:
        """Raise ValueError unless the function can be called with what there is."""
        missing = self.signature.missing(question)
        if missing:
            known = ", ".join(sorted(self.signature.values(question)))
            raise ValueError(f"{name} must name a function of what there is ({known}), got {self.path!r}, which needs {', '.join(missing)}")

    def close(self) -> None:
        """End the processes."""
        self.pool.close()


def open_scorer(name: str, path: str, others: str, timeout: float, workers: int, request_timeout: float, retries: int) -> Scorer:
    """Return what a dotted path or a URL names.

    Args:
        name, others: of the option, and what it may be besides.
        timeout: seconds for one call of a function.
        workers: processes of a function, or requests at the same time.
        request_timeout, retries: see `Served`.
    Raises:
        ValueError - there is no such function.
    """
    if is_url(path):
        return Served(path, request_timeout, retries, workers)
    return Function(name, path, others, timeout, workers)
