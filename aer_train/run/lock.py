"""The lock of a run folder: one process at a time trains in it. The system gives it back when the process ends, however that comes."""

from __future__ import annotations

import fcntl
import os
import platform
from pathlib import Path
from typing import TextIO

LOCK = "lock"
"""File in the run folder; while a process trains there it holds its number and machine, and afterwards nothing."""


class RunLock:
    """The lock of a run folder, held from `take` to `close`."""

    def __init__(self) -> None:
        self._file: TextIO | None = None
        os.register_at_fork(after_in_child=self._leave)  # a child that outlives this process must not hold the lock

    def take(self, folder: Path) -> None:
        """Take the lock of a folder that exists; nothing to do when it is held already.

        Raises:
            ValueError - another process trains in the folder.
        """
        if self._file is not None:
            return
        file = (folder / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            which = f", which process {holder} trains in" if holder else ""
            raise ValueError(f"run.out must not be in use by another process, got {folder}{which}") from None
        except OSError:
            pass  # a file system without locks, such as some of clusters, can still be trained on
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}\n")
        file.flush()
        self._file = file

    def close(self) -> None:
        """Give the lock back. The file stays: another process may have it open by now."""
        if self._file is not None:
            self._file.truncate(0)
            self._leave()

    def _leave(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
