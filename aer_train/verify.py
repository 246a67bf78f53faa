"""Verified rewards: an exact comparison first, then symbolic equality in worker processes that can be killed.

Outcomes are data: correct, wrong, no_answer, gold_unparseable, timeout and crash are counted apart, and one hostile answer costs at most
its deadline, never the run.
"""

from __future__ import annotations

import json
import math
import queue
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from aer_train.answers import AMBIGUOUS, extract, gold_answer, normalize, number, same_number
from aer_train.verify_worker import load_function

Outcome = Literal["correct", "wrong", "no_answer", "gold_unparseable", "timeout", "crash"]

START_SECONDS = 120.0
"""How long a worker may take to start; not part of an answer's time."""

MAX_SYMBOLIC = 300
"""Longer symbolic answers are wrong without being looked at."""

_EXPLOSIVE = re.compile(r"\^[^+\-,;=]*\^|\^\{?\d{4,}|\d{3,}\s*\}?\)?\s*!|\*\*|!!")


@dataclass(frozen=True)
class Verdict:
    """What was found about one response."""

    outcome: Outcome
    reward: float
    """1.0 for correct, else 0.0; a custom reward function may return anything in [0, 1] (correct means 1)."""
    extracted: str | None
    """The answer that was graded."""
    seconds: float


@dataclass(frozen=True)
class Pending:
    """Verdicts that are being worked out."""

    parts: list[Verdict | Future[Verdict]]

    def result(self) -> list[Verdict]:
        """Wait for all of them; in the order of the responses."""
        return [part if isinstance(part, Verdict) else part.result() for part in self.parts]


class Verifier:
    """Grades responses; use it as a context manager, or call `close`.

    with Verifier(timeout=5.0, workers=2) as v:
        verdicts = v.score_many([(response_text, gold_answer), ...])
    """

    def __init__(self, kind: str = "math", timeout: float = 5.0, workers: int = 2) -> None:
        """
        Args:
            kind: "math", "countdown" (the embedded task), or a dotted path to (response_text, answer) -> float in [0, 1].
            timeout: seconds for one response, > 0.
            workers: processes, >= 1. They start when the first response needs one.
        """
        if not timeout > 0:
            raise ValueError(f"timeout must be > 0, got {timeout}")
        if workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}")
        if kind not in ("math", "countdown"):
            load_function(kind)
        self.kind, self.timeout = kind, timeout
        self._idle: queue.Queue[_Worker] = queue.Queue()
        for _ in range(workers):
            self._idle.put(_Worker(kind, timeout))
        self._workers = list(self._idle.queue)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="verify")

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score_many(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return a verdict for each (response text, gold answer), in order."""
        return self.submit(pairs).result()

    def submit(self, pairs: Sequence[tuple[str, str]]) -> Pending:
        """Begin to grade each (response text, gold answer); what can be decided exactly is decided at once."""
        return Pending([self._cheap(*pair) or self._threads.submit(self._costly, *pair) for pair in pairs])

    def unparseable(self, answers: Sequence[str]) -> list[int]:
        """Return the indices of gold answers that cannot be read, to be told before a run starts."""
        if self.kind == "countdown":
            return [i for i, answer in enumerate(answers) if not re.fullmatch(r"\d{3}=\d{2}", answer)]
        if self.kind != "math":
            return []
        golds = [gold_answer(answer) for answer in answers]
        bad = [i for i, gold in enumerate(golds) if not gold]
        symbolic = [i for i, gold in enumerate(golds) if gold and number(gold) is None]
        outcomes = self._threads.map(lambda i: self._ask("0", golds[i])[0], symbolic)
        return sorted([*bad, *(i for i, outcome in zip(symbolic, outcomes, strict=True) if outcome not in ("correct", "wrong"))])

    def close(self) -> None:
        """End the worker processes."""
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.kill()

    def _cheap(self, response: str, gold: str) -> Verdict | None:
        """The verdict where no worker is needed."""
        start = time.perf_counter()
        if self.kind == "countdown":
            from aer_train.tasks import countdown

            right = countdown.score(response, gold)
            return Verdict("correct" if right else "wrong", right, response[:16], time.perf_counter() - start)
        if self.kind != "math":
            return None
        outcome, answer = compare(response, gold)
        return None if outcome is None else Verdict(outcome, float(outcome == "correct"), answer, time.perf_counter() - start)

    def _costly(self, response: str, gold: str) -> Verdict:
        start = time.perf_counter()
        if self.kind == "math":
            answer = extract(response) or ""
            outcome, _ = self._ask(answer, gold_answer(gold))
            reward = float(outcome == "correct")
        else:
            answer = None
            outcome, value = self._ask(response, gold)
            reward = value if isinstance(value, float) else 0.0
        return Verdict(outcome, reward, answer, time.perf_counter() - start)

    def _ask(self, *arguments: str) -> tuple[Outcome, Any]:
        worker = self._idle.get()
        try:
            reply = worker.call(arguments)
        except TimeoutError:
            worker.kill()
            return "timeout", None
        except (OSError, EOFError, json.JSONDecodeError):
            worker.kill()
            return "crash", None
        finally:
            self._idle.put(worker)
        if isinstance(reply, str):
            return reply, None  # type: ignore[return-value]
        if isinstance(reply, bool | int | float) and math.isfinite(reply) and 0 <= reply <= 1:
            return ("correct" if reply == 1 else "wrong"), float(reply)
        return "crash", None


def compare(response: str, gold: str) -> tuple[Outcome | None, str | None]:
    """Return the outcome and the extracted answer as far as they can be decided exactly; outcome None asks for a symbolic comparison."""
    expected = gold_answer(gold)
    if not expected:
        return "gold_unparseable", None
    answer = extract(response)
    if not answer:
        return "no_answer", None
    if answer == AMBIGUOUS:
        return "wrong", None
    found, truth = number(answer), number(expected)
    if found is not None and truth is not None:
        return ("correct" if same_number(found, truth) else "wrong"), answer
    ours, theirs = normalize(answer), normalize(expected)
    if ours == theirs:
        return "correct", answer
    lenient = ("%" in ours) != ("%" in theirs) or _shape(ours) != _shape(theirs)
    if lenient or len(ours) > MAX_SYMBOLIC or not answer.isprintable() or _EXPLOSIVE.search(ours):
        return "wrong", answer
    return None, answer


def _shape(text: str) -> tuple[str, int]:
    """Brackets around the whole and number of commas directly inside: an interval is not a set, a list is not its member."""
    text = text.replace("\\{", "<").replace("\\}", ">")
    depth, commas, closes_at = 0, [0, 0], -1
    for position, character in enumerate(text):
        depth += (character in "([{<") - (character in ")]}>")
        if depth == 0 and closes_at < 0:
            closes_at = position
        if character == "," and depth <= 1:
            commas[max(depth, 0)] += 1
    enclosed = text[:1] in ("(", "[", "<") and closes_at == len(text) - 1
    return (text[0] + text[-1], commas[1]) if enclosed else ("", commas[0])


class _Worker:
    """One child process, started at its first call and again after a kill."""

    def __init__(self, kind: str, timeout: float) -> None:
        self.kind, self.timeout = kind, timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket

    def call(self, arguments: Sequence[str]) -> Any:
        """Send arguments, return the reply. Raises TimeoutError, or EOFError when the process died."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        return self._exchange(json.dumps(arguments) + "\n", self.timeout)

    def kill(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._channel.close()
            self._process = None

    def _start(self) -> None:
        self.kill()
        self._channel, child = socket.socketpair()
        command = [sys.executable, "-m", "aer_train.verify_worker", str(child.fileno()), str(self.timeout), self.kind]
        try:
            self._process = subprocess.Popen(command, pass_fds=[child.fileno()], stdin=subprocess.DEVNULL, start_new_session=True)
        finally:
            child.close()
        self._exchange("", START_SECONDS)

    def _exchange(self, message: str, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        self._channel.settimeout(seconds)
        self._channel.sendall(message.encode())
        reply = b""
        while not reply.endswith(b"\n"):
            self._channel.settimeout(max(deadline - time.monotonic(), 1e-3))
            part = self._channel.recv(65536)
            if not part:
                raise EOFError("the verifier process died")
            reply += part
        return json.loads(reply)
