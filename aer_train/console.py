"""What a person sees while a run goes on: a progress bar with the numbers that matter, and a hint when a number means trouble."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

Row = dict[str, Any]

PLAIN_SECONDS = 10.0
"""Seconds between two lines when the output is not a terminal."""


class Console:
    """Progress of one training run on standard output."""

    def __init__(self) -> None:
        self.rich = RichConsole(highlight=False)
        self._progress: Progress | None = None
        self._task: Any = None
        self._last_line = 0.0
        self._first: Row | None = None
        self._hinted: set[str] = set()

    def start(self, total: int, done: int) -> None:
        """Show the bar of a run of `total` steps of which `done` are behind it."""
        if not self.rich.is_terminal:
            return
        shown = TextColumn("{task.fields[numbers]}")
        self._progress = Progress(
            TextColumn("train"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), shown, console=self.rich
        )
        self._progress.start()
        self._task = self._progress.add_task("train", total=total, completed=done, numbers="")

    def step(self, row: Row) -> None:
        """Show the numbers of a finished step, and the hints that they call for."""
        self._first = self._first or row
        if self._progress is not None:
            self._progress.update(self._task, completed=row["step"], numbers=numbers(row))
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self._last_line = time.monotonic()
            self.message(f"step {row['step']}: {numbers(row)}")
        for name, text in hints(row, self._first).items():
            if name not in self._hinted:
                self._hinted.add(name)
                self.hint(text)

    def message(self, text: str) -> None:
        """Print a line."""
        self.rich.print(text, markup=False, soft_wrap=True)

    def hint(self, text: str) -> None:
        """Print a line that says what to do."""
        self.rich.print(f"hint: {text}", style="yellow", markup=False, soft_wrap=True)

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


def hints(row: Row, first: Row) -> dict[str, str]:
    """Return what the numbers of a step call for, by name; `first` is the first step's row."""
    relative = row["entropy/mean"] / first["entropy/mean"] if row.get("entropy/mean") is not None and first.get("entropy/mean") else 1.0
    known: Sequence[tuple[str, bool, str]] = (
        ("zero_variance", row["reward/zero_variance_frac"] == 1.0,
         "all responses to each prompt got the same reward: no learning signal; try easier data or a larger rollout.group_size"),
        ("truncated", row["tokens/truncated_frac"] == 1.0, "every response was cut: raise rollout.max_new_tokens"),
        ("collapse", relative < 0.25,
         "entropy fell below a quarter of its start: use entropy.kind aer, or raise entropy.tau or entropy.max_coef"),
        ("explosion", relative > 2.0,
         "entropy is more than twice its start: lower entropy.max_coef (or entropy.coef for a fixed coefficient), or optim.lr"),
        ("saturated", row.get("entropy/saturated") == 1 and row["step"] > 10,
         "the entropy coefficient is at its bound and entropy still below the target: raise entropy.max_coef or lower entropy.tau"),
    )  # fmt: skip
    return {name: text for name, holds, text in known if holds}
