"""The demo: plain GRPO beside AER from the same start, on the embedded task, with nothing to download."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from aer_train.monitor.console import numbers
from aer_train.run.folder import read_evals, read_metrics

RUNS = {"grpo": "off", "aer": "aer"}
"""Name of each run and its method.kind; everything else is the same."""

EVAL_EVERY = 20
"""Steps between two points of the report's accuracy curves."""

INTRODUCTION = (
    "Countdown: reach a target with three digits. Easy prompts need + and - only; hard ones need a *, which the policy almost never tries."
)


@dataclass
class Child:
    """A training run in a process of its own."""

    name: str
    folder: Path
    command: list[str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def last_row(self) -> dict[str, Any] | None:
        """The newest complete row of metrics; the run may be writing the next one."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().rsplit("\n", 2) if path.exists() else []
        return json.loads(lines[-2]) if len(lines) > 1 and lines[-2] else None


def run_demo(out: Path, steps: int = 140, seed: int = 0, warmup: bool = False) -> None:
    """Train both runs, print the comparison, write the report.

    Args:
        out: folder for everything; must not exist yet.
        steps: of each run.
        seed: of both runs.
        warmup: make the starting policy anew instead of using the one in the package.
    Raises:
        ValueError - out exists, or steps is not positive; ChildProcessError - a run failed (its last lines are shown, its log is named).
    """
    if out.exists():
        raise ValueError(f"out must not exist yet, got {out} (choose another with --out)")
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    console = Console(highlight=False)
    console.print(INTRODUCTION, soft_wrap=True)
    out.mkdir(parents=True)
    model = "builtin:countdown"
    if warmup:
        from aer_train.tasks.warmup import warm_up

        warm_up(out / "policy", seed=seed)
        model = str(out / "policy")
    children = [Child(name, out / name, _command(out / name, kind, model, steps, seed)) for name, kind in RUNS.items()]
    _watch(children, steps, console)
    _compare(children, console)
    from aer_train.report import write_report

    page = write_report([child.folder for child in children], out)
    console.print(f"report  {page}\nruns    {', '.join(str(child.folder) for child in children)}", soft_wrap=True)


def _command(folder: Path, kind: str, model: str, steps: int, seed: int) -> list[str]:
    run = {"out": folder, "steps": steps, "seed": seed, "threads": 1, "device": "cpu"}
    options = [
        f"--model.name={model}",
        f"--method.kind={kind}",
        f"--eval.every={EVAL_EVERY}",
        *(f"--run.{name}={value}" for name, value in run.items()),
    ]
    return [sys.executable, "-m", "aer_train", "train", "--preset", "countdown", *options]


def _watch(children: list[Child], steps: int, console: Console) -> None:
    """Run the children, side by side where there are cores for it, and show how far they are."""
    side_by_side = min(len(children), _cores())
    shown = TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True))
    kept = [Column(no_wrap=True, min_width=7) for _ in range(2)]  # a narrow terminal cuts the numbers, not the count or the time
    counts = (MofNCompleteColumn(table_column=kept[0]), TimeElapsedColumn(table_column=kept[1]))
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=12), *counts, shown)
    waiting, running = list(children), list[Child]()
    try:
        with Progress(*columns, console=console) as progress:
            tasks = {child.name: progress.add_task(child.name, total=steps, numbers="starting") for child in children}
            while waiting or running:
                while waiting and len(running) < side_by_side:
                    running.append(waiting.pop(0))
                    running[-1].start()
                time.sleep(0.25)
                for child in list(running):
                    row = child.last_row()
                    if row is not None:
                        progress.update(tasks[child.name], completed=row["step"], numbers=numbers(row))
                    if child.process is not None and child.process.poll() is not None:
                        running.remove(child)
                        _check(child, console)
    finally:
        for child in running:
            if child.process is not None:
                child.process.terminate()
                child.process.wait()


def _cores() -> int:
    """Cores that this process may use; macOS knows no affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(child: Child, console: Console) -> None:
    if child.process is not None and child.process.returncode != 0:
        said = child.log.read_text(errors="replace").strip().splitlines()[-15:]
        console.print("\n".join(said), markup=False, soft_wrap=True)
        raise ChildProcessError(f"run {child.name} failed with exit code {child.process.returncode}; its log is {child.log}")


def _compare(children: list[Child], console: Console) -> None:
    """The table: before, GRPO and AER, by tier."""
    evals = {child.name: list(read_evals(child.folder).values()) for child in children}
    kept = {child.name: _entropy_kept(child.folder) for child in children}
    before = evals["grpo"][0]["tiers"]
    best = list(before["easy"]["pass@k"])[-1]
    table = Table(title="Held-out prompts")
    for name in ("", "easy accuracy", f"easy pass@{best}", "hard accuracy", f"hard pass@{best}", "entropy kept"):
        table.add_column(name, justify="left" if not name else "right")
    for label, tiers, share in (
        ("before", before, 1.0),
        ("GRPO", evals["grpo"][-1]["tiers"], kept["grpo"]),
        ("AER", evals["aer"][-1]["tiers"], kept["aer"]),
    ):
        cells = [value for tier in ("easy", "hard") for value in (tiers[tier]["accuracy"], tiers[tier]["pass@k"][best])]
        table.add_row(label, *(f"{value:.3f}" for value in cells), f"{share:.0%}")
    console.print(table)
    grpo, aer = (evals[name][-1]["tiers"]["hard"]["accuracy"] for name in ("grpo", "aer"))
    console.print(
        f"Hard prompts solved at the first try: {before['hard']['accuracy']:.1%} before, {grpo:.1%} with plain GRPO, {aer:.1%} with AER. "
        f"One seed says little: repeat with --seed.",
        soft_wrap=True,
    )


def _entropy_kept(folder: Path, last: int = 10) -> float:
    """Mean entropy of the last steps as a share of the first."""
    values = [row["entropy/mean"] for row in read_metrics(folder)]
    return sum(values[-last:]) / len(values[-last:]) / values[0]
