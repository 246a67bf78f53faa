"""What a person sees while a run goes on: a progress bar with the numbers that matter, and a hint when a number means trouble."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from aer_train import dist
from aer_train.config import TrainConfig
from aer_train.hints import Hints

Row = dict[str, Any]

PLAIN_SECONDS = 10.0
"""Seconds between two lines when the output is not a terminal."""


class Console:
    """Progress of one training run on standard output; of several ranks only the main one speaks."""

    def __init__(self) -> None:
        self.rich = RichConsole(highlight=False, quiet=not dist.is_main())
        self._progress: Progress | None = None
        self._task: Any = None
        self._last_line = 0.0
        self._hints: Hints | None = None

    def start(self, total: int, done: int) -> None:
        """Show the bar of a run of `total` steps of which `done` are behind it."""
        if not self.rich.is_terminal or self.rich.quiet:
            return
        shown = TextColumn("{task.fields[numbers]}")
        self._progress = Progress(
            TextColumn("train"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), shown, console=self.rich
        )
        self._progress.start()
        self._task = self._progress.add_task("train", total=total, completed=done, numbers="")

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
            self.rich.print(f"hint, step {hint.step}: {hint.text}", style="yellow", markup=False, soft_wrap=True)

    def message(self, text: str) -> None:
        """Print a line."""
        self.rich.print(text, markup=False, soft_wrap=True)

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
    target, smoothed = row.get("entropy/target"), row.get("entropy/mean")
    entropy = "" if smoothed is None else f"  H {smoothed:.3f}" + ("" if target is None else f" -> {target:.3f}")
    return f"reward {row['reward/mean']:.3f}{entropy}  coef {row['entropy/coef']:.3f}  {row['perf/tokens_per_second']:,.0f} tok/s"


def eval_table(result: Row) -> Table:
    """Return an evaluation as a table: a row for each tier, accuracy and pass@k."""
    ks = list(next(iter(result["tiers"].values()))["pass@k"])
    where = "evaluation" if result.get("step") is None else f"evaluation at step {result['step']}"
    table = Table(title=f"{where}, {result['samples']} samples at T = {result['temperature']:g}")
    for name in ("tier", "problems", "accuracy", *(f"pass@{k}" for k in ks), "truncated"):
        table.add_column(name, justify="left" if name == "tier" else "right")
    for tier, found in result["tiers"].items():
        shares = [found["accuracy"], *found["pass@k"].values(), found["truncated_frac"]]
        table.add_row(tier, str(found["problems"]), *(f"{share:.3f}" for share in shares))
    return table
