"""A server as a child process: it writes to a log, must answer within a time, and ends with this process, however that ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from aer_train.rollout.http import call

TELL_EVERY = 15.0
"""Seconds between two messages while a server starts."""

GRACE = 20.0
"""Seconds that a server may take to end by itself."""

LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: also when the parent is killed
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has ended")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ServerProcess:
    """A command that serves at `url`."""

    def __init__(self, command: Sequence[str], env: dict[str, str], url: str, log: Path) -> None:
        """Start it; what it prints goes to the end of `log`, whose folder is made."""
        self.url, self.log = url, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, str(os.getpid()), *command],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which then closes the server
            )

    def check(self) -> None:
        """
        Raises:
            ChildProcessError - it has ended.
        """
        if self._process.poll() is not None:
            last, code = " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-5:]), self._process.returncode
            raise ChildProcessError(f"the server at {self.url} ended with exit code {code}; its log is {self.log}: {last}")

    def close(self) -> None:
        """End it, with all its processes."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, sign)
            except ProcessLookupError:
                break
            try:
                self._process.wait(GRACE)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()


def wait_until_healthy(url: str, timeout: float, message: Callable[[str], None], process: ServerProcess | None = None) -> None:
    """Return when the server answers at /health.

    Args:
        timeout: seconds.
        message: is told that it takes long.
        process: the server, if it is a child.
    Raises:
        TimeoutError - it does not answer in time; ChildProcessError - it has ended.
    """
    begin = told = time.monotonic()
    where = "" if process is None else f" (log: {process.log})"
    while True:
        if process is not None:
            process.check()
        try:
            return call(f"{url}/health", post=False, timeout=5.0)
        except (ConnectionError, TimeoutError) as error:
            reason = error
        now = time.monotonic()
        if now - begin > timeout:
            raise TimeoutError(f"vLLM must answer within vllm.start_timeout = {timeout:g} s{where}, got: {reason}")
        if now - told > TELL_EVERY:
            told = now
            message(f"waiting for vLLM at {url}, {now - begin:.0f} s so far{where}")
        time.sleep(0.5)


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
