"""A server as a child process: it listens on a Unix socket in a folder that only this user may enter, writes to a log, must answer within a
time, and ends with this process, however that ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from aer_train.rollout.http import call, socket_url

TELL_EVERY = 15.0
"""Seconds between two messages while a server starts."""

GRACE = 20.0
"""Seconds that a server may take to end by itself."""

LONGEST_FOLDER = 60
"""Characters. The system allows 103 for the file of a socket (107 on Linux), and the server adds a name of 36 to its own."""

LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: also when the parent is killed
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has ended")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ServerProcess:
    """A command that serves at `url`, which no other user can reach."""

    def __init__(self, command: Callable[[Path], Sequence[str]], env: dict[str, str], log: Path) -> None:
        """Start it; what it prints goes to the end of `log`, whose folder is made.

        Args:
            command: takes the file of the socket. Its temporary files, and with them its other sockets, get into the same private folder.
        Raises:
            ValueError - the name of the folder for temporary files is too long for sockets.
        """
        self.folder, self.log = private_folder(), log
        socket = self.folder / "http"
        self.url = socket_url(socket)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", LAUNCH, str(os.getpid()), *command(socket)],
                env={**env, "TMPDIR": str(self.folder)},
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
        """End it, with all its processes, and remove its folder."""
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
        shutil.rmtree(self.folder, ignore_errors=True)


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


def private_folder() -> Path:
    """Make a folder for sockets that only this user may enter, below TMPDIR.

    Raises:
        ValueError - its name would be too long for sockets.
    """
    folder = Path(tempfile.mkdtemp(prefix="aer-"))
    if len(os.fsencode(folder)) > LONGEST_FOLDER:
        folder.rmdir()
        raise ValueError(f"TMPDIR must be a folder with a shorter name, for sockets (as /tmp), got {folder.parent}")
    return folder
