"""One command at a time in a folder of results."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder for as long as the context lasts; the system lets go of it when the process ends, however it does.

    Raises:
        ValueError - another process holds it: two would write into the same runs.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"--out must not be in use by another command, got {out}") from error
        yield
