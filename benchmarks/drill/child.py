"""`python -m benchmarks.drill.child FOLDER N LOG ARGUMENT...`: aer-train, which kills itself in the midst of its N-th file operation.

Before each opening for writing, renaming, creation or deletion below FOLDER, Python's audit events are counted; at the N-th the process
appends what it was about to do to LOG and sends itself SIGKILL. Nothing in the trainer knows of it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

WRITES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def watch(folder: str, fatal: int, log: str) -> None:
    """Install the hook."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in WRITES or not isinstance(arguments[0], str | os.PathLike) or not os.fspath(arguments[0]).startswith(folder):
            return
        if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        count += 1
        if count == fatal:
            with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "w") as file:
                file.write(f"{event} {os.fspath(arguments[0]).removeprefix(folder).lstrip('/')}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    watch(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    from aer_train.cli import main

    raise SystemExit(main(sys.argv[4:]))
