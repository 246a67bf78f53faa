"""Kills at random moments: of the trainer by a signal, of the trainer in the midst of writing, of verifier workers."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.drill import processes
from benchmarks.drill.outcome import Outcome, expect
from benchmarks.drill.runs import Ended, command, differences, finish, launch, resume_arguments, rows_so_far, start_arguments

KINDS = {"trainer by signal": 7, "trainer in a file operation": 7, "verifier worker": 6}
"""How many of each."""

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ORPHAN_SECONDS = 5.0
"""A worker may outlive its trainer by this."""
OPERATIONS = 60
"""File operations up to which a process may be left to live; a whole run makes about three times as many."""
STARTUP_SECONDS = 4.0
ROWS = 4
"""Kills come in the first seconds of a process, or after up to so many steps."""


class Killer:
    """One run after another, each killed and resumed until it is done, until there have been enough kills."""

    def __init__(self, folder: Path, seed: int, reference: dict[str, Any], report: Callable[[Outcome], None]) -> None:
        self.folder, self.rng, self.reference, self.report = folder, random.Random(f"drill-{seed}"), reference, report
        self.names = (folder / f"killed-{number}" for number in itertools.count(1))
        self.run = next(self.names)
        self.waiting: list[Outcome] = []
        """Kills of the present run, which has to end well before they count."""

    def go(self, total: int) -> None:
        """Make so many kills, in the proportions of KINDS and in random order; let the last run end."""
        kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
        self.rng.shuffle(kinds)
        for number, kind in enumerate(itertools.islice(itertools.cycle(kinds), total), 1):
            while not self._kill(Outcome(f"kill {number}: {kind}"), kind):
                pass  # the run was done before its time had come: a new one
        if self.waiting:
            self._done(finish(launch(command(self._arguments()))))

    def _arguments(self) -> list[str]:
        """Start the run, or go on with what the last kill left."""
        return resume_arguments(self.run) if self.run.exists() else start_arguments(self.run)

    def _kill(self, outcome: Outcome, kind: str) -> bool:
        """Start or resume the run and kill. Returns whether the kill came in time."""
        begin, before = time.monotonic(), rows_so_far(self.run)
        make = {"trainer by signal": self._by_signal, "trainer in a file operation": self._in_operation, "verifier worker": self._worker}
        ended, workers, what = make[kind](before)
        orphans = processes.orphans(workers, ORPHAN_SECONDS)
        expect(not orphans, "no verifier worker to outlive its trainer", orphans)
        if what is not None:
            outcome.seconds = time.monotonic() - begin
            outcome.happened.append(f"{what}; {before} rows before, {rows_so_far(self.run)} after")
            self.waiting.append(outcome)
        if what is None or kind == "verifier worker":
            self._done(ended)
        return what is not None

    def _by_signal(self, before: int) -> tuple[Ended, set[int], str | None]:
        chosen, rows = self.rng.choice(SIGNALS), self.rng.randint(0, ROWS)
        delay = self.rng.uniform(0.0, STARTUP_SECONDS if rows == 0 else 0.3)
        process = launch(command(self._arguments()))
        workers = self._until(process, before + rows, delay)
        if process.poll() is not None:
            return finish(process), workers, None
        process.send_signal(chosen)
        ended = finish(process)
        return ended, workers, f"{chosen.name} to the trainer" if ended.code != 0 else None

    def _in_operation(self, before: int) -> tuple[Ended, set[int], str | None]:
        fatal, log = self.rng.randint(1, OPERATIONS), self.folder / "operation"
        log.unlink(missing_ok=True)
        process = launch([sys.executable, "-m", "benchmarks.drill.child", str(self.run), str(fatal), str(log), *self._arguments()])
        workers = self._until(process, None, 0.0)
        return finish(process), workers, f"killed in operation {fatal}, {log.read_text().strip()}" if log.exists() else None

    def _worker(self, before: int) -> tuple[Ended, set[int], str | None]:
        process = launch(command(self._arguments()))
        workers = self._until(process, before + self.rng.randint(0, ROWS), self.rng.uniform(0.0, 0.1), wait_for_workers=True)
        running = sorted(processes.workers(process.pid))
        if running:
            os.kill(self.rng.choice(running), signal.SIGKILL)
        return finish(process), workers, "SIGKILL to a worker" if running else None

    def _until(self, process: subprocess.Popen[str], rows: int | None, delay: float, wait_for_workers: bool = False) -> set[int]:
        """Wait until there are so many rows (None: for the process's end), then for `delay` seconds. Returns the workers that were seen."""
        seen: set[int] = set()
        while process.poll() is None:
            seen |= set(processes.workers(process.pid))
            if rows is not None and rows_so_far(self.run) >= rows and (seen or not wait_for_workers):
                time.sleep(delay)
                return seen | set(processes.workers(process.pid))
            time.sleep(0.01)
        return seen

    def _done(self, ended: Ended) -> None:
        """Hold the finished run against the undisturbed one; the next kill gets a new run."""
        expect(ended.code == 0, "the run to go on to its end", f"exit code {ended.code}: {ended.error}")
        different = differences(self.run, self.reference)
        expect(not different, f"{self.run.name} to end like the undisturbed run", f"differences in {different[:8]}")
        rubbish = [str(path) for path in self.run.rglob(".*") if path.name != ".metadata"]
        expect(not rubbish, "no temporary files", rubbish)
        for outcome in self.waiting:
            outcome.verdict = "same final state"
            outcome.happened.append(f"{self.run.name} ended like the undisturbed run")
            self.report(outcome)
        self.waiting, self.run = [], next(self.names)
