"""Child processes that answer calls, each call under a deadline that the parent keeps: what hangs is killed, what dies is replaced."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

START_SECONDS = 120.0
"""How long a process may take to start and import its function; not part of a call's time."""

START_ATTEMPTS = 3
"""Starts that may fail in a row before the pool gives up: memory or process limits may be short for a moment."""

KILL_SECONDS = 10.0
"""How long a killed process may take to be gone."""

REPLY_BYTES = 1 << 20
"""A longer reply is a crash."""

KILLED = "the process died (SIGKILL)"
"""What becomes of a call whose process is killed by the system or by a person."""


Arguments = Sequence[Any] | dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What became of a call."""

    status: Literal["ok", "timeout", "crash"]
    value: Any
    """What the function returned (text, a number or None) when the status is ok, else what went wrong."""
    seconds: float
    """From the moment a process took the call; waiting for a free process and starting one do not count."""


class Pool:
    """Calls a function in child processes. Usable from any thread, and after a fork (the child gets processes of its own)."""

    def __init__(self, target: str, timeout: float, workers: int, warm_up: Sequence[str] | None = None, memory_bytes: int = 4 << 30):
        """
        Args:
            target: dotted path of the function.
            timeout: seconds for one call.
            workers: processes; each starts when a call needs it.
            warm_up: arguments of a call that is made before a process counts as started.
            memory_bytes: address space that a process may take beyond what its imports took.
        """
        self._hello = {"path": sys.path, "target": target, "timeout": timeout, "warm_up": warm_up, "memory_bytes": memory_bytes}
        self._timeout, self._size = timeout, workers
        self._open()

    def _open(self) -> None:
        self._pid, self._closed = os.getpid(), False
        self._workers = [_Worker(self._hello, self._timeout) for _ in range(self._size)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(self._size, thread_name_prefix="verify")

    def submit(self, *arguments: Any, **named: Any) -> Future[Reply]:
        """Return the reply to come.

        Args:
            arguments, named: what the function is called with, by place or by name: anything JSON can hold.

        Raises (when the result is asked for): ChildProcessError - no process can be started; ImportError - it cannot load the function;
        CancelledError - the pool was closed before.
        """
        if os.getpid() != self._pid:  # a fork: the threads stayed with the parent, and so must its processes
            self._inherited = self._workers
            self._open()
        return self._threads.submit(self._call, named or arguments)

    def close(self) -> None:
        """End all processes, at once; calls that wait are cancelled. May be called again."""
        if os.getpid() != self._pid or self._closed:
            return
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.end()
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.kill()

    def pids(self) -> list[int]:
        """Return the processes that were started and not yet replaced."""
        return [worker.process.pid for worker in self._workers if worker.process is not None]

    def _call(self, arguments: Arguments) -> Reply:
        worker = self._idle.get()
        try:
            worker.ensure_started()
            start = time.perf_counter()
            status, value = worker.ask(arguments, self._timeout)
            seconds = time.perf_counter() - start
            if value == KILLED and seconds < self._timeout and not self._closed:  # perhaps not by the call itself: what is left of its time
                worker.ensure_started()
                start = time.perf_counter()
                status, value = worker.ask(arguments, self._timeout - seconds)
                seconds += time.perf_counter() - start
            return Reply(status, value, seconds)
        finally:
            self._idle.put(worker)


class _Worker:
    """One child process and the socket to it."""

    def __init__(self, hello: dict[str, Any], timeout: float) -> None:
        self._hello, self._timeout = hello, timeout
        self._ended = False
        self._channel: socket.socket
        self.process: subprocess.Popen[bytes] | None = None

    def ensure_started(self) -> None:
        """Start the process if there is none, or if the last one died since its last reply."""
        if self.process is not None and self._quiet():
            return
        for attempt in range(START_ATTEMPTS):
            try:
                return self._start()
            except OSError as error:
                self.kill()
                if self._ended:
                    raise CancelledError from None
                if attempt == START_ATTEMPTS - 1:
                    raise ChildProcessError(f"a verifier process must start, got: {error or type(error).__name__}") from error
                time.sleep(2.0**attempt)
            except (ImportError, CancelledError):
                self.kill()
                raise

    def ask(self, arguments: Arguments, seconds: float) -> tuple[Literal["ok", "timeout", "crash"], Any]:
        """Send arguments, return (status, value). A process that gave no reply is gone."""
        try:
            reply = self._exchange(arguments, seconds)
        except TimeoutError:
            self.kill()
            return "timeout", f"no answer within {self._timeout:g} s"
        except OSError as error:
            told = f"the process died ({self._wait()})" if isinstance(error, ConnectionError) else str(error)
            self.kill()
            if self._ended:
                raise CancelledError from None
            return "crash", told
        if not isinstance(reply, dict):
            return "ok", reply
        if reply.get("last"):  # else the next call could still reach it, and fail for it
            self.kill()
        return "crash", str(reply["error"])

    def end(self) -> None:
        """Kill the process from another thread, and let none start any more."""
        self._ended = True
        self._signal()

    def kill(self) -> None:
        """Kill the process and what it forked, whatever they do."""
        if self.process is None:
            return
        self._wait()
        self._channel.close()
        self.process = None

    def _signal(self) -> None:
        process = self.process
        if process is not None and process.returncode is None:  # not yet waited for: the number is still this process's
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                process.kill()  # it has no group yet

    def _wait(self) -> str:
        """Kill the process, wait until it is gone, and say how it ended."""
        assert self.process is not None
        self._signal()
        try:
            code = self.process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:  # stuck in the kernel: it goes when it can, nobody waits for it
            return "it cannot be killed"
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name

    def _quiet(self) -> bool:
        """Whether nothing waits to be read: neither the end of the process nor words that nobody asked for."""
        try:
            self._channel.setblocking(False)
            self._channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _start(self) -> None:
        self.kill()
        self._channel, child = socket.socketpair()
        script = str(Path(__file__).with_name("worker.py"))
        command = [sys.executable, "-P", script, str(child.fileno()), str(os.getpid())]
        with child:
            # What a function prints goes to standard error: standard output belongs to the program.
            self.process = subprocess.Popen(
                command,
                pass_fds=[child.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__ or subprocess.DEVNULL,
                start_new_session=True,
            )
        if self._ended:
            raise CancelledError
        reply = self._exchange(self._hello, START_SECONDS)
        if reply != "ready":
            raise ImportError(f"a verifier process must be able to load {self._hello['target']}, got {reply['error']}")

    def _exchange(self, message: Any, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        self._channel.settimeout(seconds)
        self._channel.sendall(json.dumps(message).encode() + b"\n")
        reply = bytearray()
        while not reply.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._channel.settimeout(left)
            part = self._channel.recv(65536)
            if not part:
                raise ChildProcessError(f"the process died ({self._wait()})")
            reply += part
            if len(reply) > REPLY_BYTES:
                raise ChildProcessError(f"the reply is longer than {REPLY_BYTES} bytes")
        try:
            return json.loads(reply)
        except ValueError as error:
            raise ChildProcessError(f"the reply is not JSON: {error}") from error
