"""What a person sees while a run goes on: a progress bar with the numbers that matter, and a hint when a number means trouble."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from aer_train import dist
from aer_train.config.tree import TrainConfig
from aer_train.evaluation.tables import eval_cells, eval_title
from aer_train.monitor.band import held_entropy
from aer_train.monitor.hints import Hints
from aer_train.types import Row

PLAIN_SECONDS = 10.0
"""Seconds between two lines when the output is not a terminal."""

LOG_WIDTH = 120
"""Columns of a table that goes into a file."""


class Console:
    """Progress of one training run on standard output; of several ranks only the main one speaks."""

    def __init__(self) -> None:
        self.rich = RichConsole(highlight=False, quiet=not dist.is_main())
        if not self.rich.is_terminal:
            self.rich.width = LOG_WIDTH
        self._progress: Progress | None = None
        self._task: Any = None
        self._last_line = 0.0
        self._hints: Hints | None = None
        self._done = self._total = 0

    def start(self, total: int, done: int, title: str = "train") -> None:
        """Show the bar of `total` steps (or responses) of which `done` are behind it; an earlier bar is taken away."""
        self.close()
        self._done, self._total = done, total
        if not self.rich.is_terminal or self.rich.quiet:
            return
        shown = TextColumn("{task.fields[numbers]}")
        self._progress = Progress(
            TextColumn(title), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), shown, console=self.rich
        )
        self._progress.start()
        self._task = self._progress.add_task(title, total=total, completed=done, numbers="")

    def advance(self, count: int) -> None:
        """Show that `count` more responses are there."""
        self._done += count
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done)
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self._last_line = time.monotonic()
            self.message(f"{self._done} of {self._total} responses")

    def watch(self, config: TrainConfig, rows: Iterable[Row] = ()) -> None:
        """Tell hints from now on; `rows` are those of the steps before a resume, whose hints were told then."""
        self._hints = Hints(asdict(config))
        for row in rows:
            self._hints.step(row)

    def step(self, row: Row) -> None:
        """Show the numbers of a finished step, and the hints that they call for."""
        if self._progress is not None:
            self._progress.update(self._task, completed=row["step"], numbers=numbers(row))
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self._last_line = time.monotonic()
            self.message(f"step {row['step']}: {numbers(row)}")
        for hint in self._hints.step(row) if self._hints is not None else []:
            self.hint(hint.text, hint.step)

    def message(self, text: str) -> None:
        """Print a line."""
        self.rich.print(text, markup=False, soft_wrap=True)

    def hint(self, text: str, step: int | None = None) -> None:
        """Print a line that says what to do."""
        self.rich.print(f"hint{'' if step is None else f', step {step}'}: {text}", style="yellow", markup=False, soft_wrap=True)

    def warning(self, text: str) -> None:
        """Print a line to standard error: something is not as the user may think it is."""
        if not self.rich.quiet:
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def eval_table(self, result: Row) -> None:
        """Print an evaluation."""
        self.rich.print(eval_table(result))

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def numbers(row: Row) -> str:
    """Return the numbers of a step that matter, in one line."""
    target, held = row.get("entropy/target"), held_entropy(row)
    entropy = "" if held is None else f"  H {held:.3f}" + ("" if target is None else f" -> {target:.3f}")
    moved = {"coef": row.get("entropy/coef")} | {name.removeprefix("method/"): row[name] for name in row if name.startswith("method/")}
    method = "".join(f"  {name} {value:.3f}" for name, value in moved.items() if value is not None)
    return f"reward {row['reward/mean']:.3f}{entropy}{method}  {row['perf/tokens_per_second']:,.0f} tok/s"


def eval_table(result: Row) -> Table:
    """Return an evaluation as a table: a row for each tier, with accuracy and its interval, pass@k and majority@n."""
    return table(eval_title(result), *eval_cells(result))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table whose first column is text and whose others are numbers."""
    shown = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1))
    for place, name in enumerate(header):
        shown.add_column(name, justify="right" if place else "left")
    for row in rows:
        shown.add_row(*row)
    return shown
