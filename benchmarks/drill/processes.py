"""Children of a process, from /proc (Linux)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

WORKER = "aer_train/verify/worker.py"


def workers(parent: int) -> list[int]:
    """Verifier workers that this trainer started and that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            words = _command(int(entry.name))
            if len(words) > 2 and any(word.endswith(WORKER) for word in words) and words[-1] == str(parent):
                found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    """Whether a worker still runs; a number that another program has taken over does not count."""
    return any(word.endswith(WORKER) for word in _command(pid))


def orphans(pids: set[int], patience: float) -> list[int]:
    """Which of these workers still run after so many seconds; they are ended."""
    deadline = time.monotonic() + patience
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []
