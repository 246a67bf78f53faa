"""A child process that calls one function, so that whatever hangs, eats memory or dies takes nothing with it. Run by path, by `pool`:

    python -P worker.py SOCKET_FD PARENT_PID

The first line from the socket says what to load; then every line is JSON, a list of arguments or an object of named ones, and is answered
by one line of JSON: what the function returned, or {"error": "..."}, with "last": true when this process takes no other. Imports nothing of
the package: the parent's import path arrives with the first line.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

ERROR_CHARACTERS = 500
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until the parent closes the socket or dies."""
    # a cluster sends it to all processes of a job, but this one ends with its parent; a handler, as children would inherit SIG_IGN
    signal.signal(signal.SIGTERM, lambda *_: None)
    channel = socket.socket(fileno=int(sys.argv[1]))
    _die_with(int(sys.argv[2]))
    os.register_at_fork(after_in_child=_begin_child)
    lines = channel.makefile("rw", encoding="ascii", newline="\n")
    hello = json.loads(lines.readline())
    sys.path[:] = hello["path"]
    try:
        function = load_function(hello["target"])
        if hello["warm_up"]:
            function(*hello["warm_up"])  # what a first call costs is not the first answer's fault
    except BaseException as error:
        print(json.dumps({"error": _describe(error)}), file=lines, flush=True)
        return
    _limit_memory(hello["memory_bytes"])
    print(json.dumps("ready"), file=lines, flush=True)
    for line in lines:
        _limit_cpu(hello["timeout"])
        reply, usable = _answer(function, json.loads(line))
        print(reply, file=lines, flush=True)
        if not usable:
            return


def _answer(function: Callable[..., Any], arguments: list[Any] | dict[str, Any]) -> tuple[str, bool]:
    """The reply, and whether this process is fit for another call."""
    try:
        return json.dumps(_plain(function(**arguments) if isinstance(arguments, dict) else function(*arguments))), True
    except MemoryError:  # whatever holds the memory may be here to stay
        return json.dumps({"error": "MemoryError", "last": True}), False
    except BaseException as error:  # libraries raise SystemExit, KeyboardInterrupt and their own BaseExceptions from deep inside
        return json.dumps({"error": _describe(error)}), True


def _plain(value: Any) -> str | bool | int | float | None:
    """What a function returned, without what other trainers let it come in: a coroutine, a batch of one, a dictionary with a score."""
    if inspect.isawaitable(value):
        import asyncio

        value = asyncio.run(_await(value))
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        value = value["score"]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return float(value)  # numbers of numpy, torch, fractions


async def _await(value: Any) -> Any:
    return await value


def load_function(path: str) -> Callable[..., Any]:
    """Return the function that a dotted path names.

    Raises:
        ImportError, AttributeError, ValueError - there is none.
    """
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _begin_child() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with(os.getppid())


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS]
    except BaseException:
        return type(error).__name__


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends. (Elsewhere than on Linux the closed socket must do.)"""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)


def _limit_memory(extra: int) -> None:
    """Bound the address space, counted from what the imports took."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/statm") as statm:
            limit = int(statm.read().split()[0]) * resource.getpagesize() + extra
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _limit_cpu(timeout: float) -> None:
    """A backstop for the parent's deadline: the CPU seconds of this call on all cores, and a little more."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(spent.ru_utime + spent.ru_stime + timeout * (os.cpu_count() or 1)) + 2
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds if hard == resource.RLIM_INFINITY else min(seconds, hard), hard))


if __name__ == "__main__":
    main()
