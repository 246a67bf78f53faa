"""SIGTERM, as clusters send it before they take a machine away: the step is finished and saved first, and a second one stops at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aer_train import dist

EXIT_CODE = 128 + signal.SIGTERM
"""Of a run that ended so, as shells write it."""

TEXT = b"SIGTERM: this step is finished and saved first; a second SIGTERM stops at once\n"

SAME_SECONDS = 3.0
"""Under torchrun, signals within this time are one: a cluster may send it to every process, and torchrun then passes its own on."""


class Preempted(Exception):
    """The run was asked to end, and has; everything is saved."""


class Notice:
    """Whether this process has been asked to end."""

    def __init__(self) -> None:
        self._when: float | None = None

    def given(self) -> bool:
        """Whether any process of the run has been asked by now, on all of them the same; they must call it together."""
        return any(dist.all_gather(self._when is not None))

    def receive(self, number: int, frame: object) -> None:
        """Handle SIGTERM."""
        now = time.monotonic()
        if self._when is None:
            self._when = now
            if dist.is_main():
                os.write(2, TEXT)  # a handler must not print: it may have interrupted a print
        elif dist.world() == 1 or now - self._when > SAME_SECONDS:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)


@contextmanager
def awaited() -> Iterator[Notice]:
    """Take SIGTERM as a notice for as long as the context lasts. Only the main thread can; in others it ends the process as ever."""
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return
    before = signal.signal(signal.SIGTERM, notice.receive)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
