"""A child process that compares answers or calls a custom reward, so that whatever hangs or eats memory can be killed.

    python -m aer_train.verify_worker FD TIMEOUT math | package.module.function

It reads one JSON list a line from the socket FD and answers with one JSON value a line.
"""

from __future__ import annotations

import importlib
import json
import logging
import resource
import socket
import sys
from collections.abc import Callable
from typing import Any

MEMORY_BYTES = 4 << 30


def main() -> None:
    """Serve until the parent closes the socket."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    timeout, kind = float(sys.argv[2]), sys.argv[3]
    logging.disable(logging.WARNING)  # math-verify warns at every call that its own timeouts are off
    call = math_equal if kind == "math" else load_function(kind)
    if kind == "math":
        math_equal("1", "x")  # pays for the first symbolic comparison before an answer's clock runs
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lines = channel.makefile("rw", encoding="utf-8", newline="\n")
    print(json.dumps("ready"), file=lines, flush=True)
    for line in lines:
        spent = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(spent.ru_utime + spent.ru_stime + timeout) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))  # an orphan ends too
        print(json.dumps(_answer(call, json.loads(line))), file=lines, flush=True)


def _answer(call: Callable[..., Any], arguments: list[str]) -> Any:
    try:
        return call(*arguments)
    except BaseException as error:  # libraries raise SystemExit, KeyboardInterrupt and their own BaseExceptions from deep inside
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def math_equal(answer: str, gold: str) -> str:
    """Return correct, wrong or gold_unparseable by symbolic comparison. No timeouts of its own: the parent has the clock."""
    from math_verify import parse, verify

    expected = parse(f"${gold}$", parsing_timeout=None)
    if not [e for e in expected if not isinstance(e, str)]:
        return "gold_unparseable"
    found = parse(f"${answer}$", parsing_timeout=None)
    return "correct" if found and verify(expected, found, timeout_seconds=None) else "wrong"


def load_function(path: str) -> Callable[..., Any]:
    """Return the function that a dotted path names.

    Raises:
        ValueError - it cannot be imported or called.
    """
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"reward.kind must be math, countdown or a dotted path to a function, got {path!r}: {error}") from error
    if not callable(function):
        raise ValueError(f"reward.kind must name a function, got {path!r} of type {type(function).__name__}")
    return function


if __name__ == "__main__":
    main()
