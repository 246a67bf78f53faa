"""What came of a real model: one table of held-out problems, and one figure of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aer_train.monitor.band import SPAN, trailing_mean
from aer_train.report.plots import COLORS
from aer_train.tasks.prompts import TIERS
from study.intervals import mean
from study.measures import kept, solved
from study.plots import grid
from study.records import Record, by_place
from study.tables import by_method, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREEDY = " at 0"
"""Behind the name of a split: its greedy responses."""

CURVES = {
    "easy": "training reward, easy",
    "hard": "training reward, hard",
    "per_response": "entropy, nats a response",
    "coef": "coefficient",
}


def real_table(records: Sequence[Record], policies: Mapping[str, Mapping[str, float]]) -> str:
    """Return a table in Markdown: first try, k samples and greedy on the test problems of each tier, before training and after each method.

    Args:
        policies: what the starting policy of each setting could do (`study.conditions`).
    """
    places = by_place(records)
    samples = records[0]["samples"]
    asked = (("test", 1), ("test", samples), (f"test{GREEDY}", 1))
    heads = [f"{tier} {what}" for tier in TIERS for what in ("first try", f"{samples} samples", "greedy")]
    lines = [f"| setting | method | runs | {' | '.join(heads)} | entropy kept |", "|---" * (len(heads) + 4) + "|"]
    for place, ours in places.items():
        start = policies[ours[0]["setting"]]
        cells = [start.get(f"test {tier} {what}") for tier in TIERS for what in ("accuracy", f"pass@{samples}", "greedy")]
        lines.append(f"| {place} | before | - | {' | '.join('' if cell is None else f'{cell:.3f}' for cell in cells)} | 1 |")
        for method, runs in by_method(ours):
            numbers = [solved(split, tier, k) for tier in TIERS for split, k in asked]
            found = " | ".join(shown(mean(runs, number)) for number in numbers)
            lines.append(f"| {place} | {method} | {len(runs)} | {found} | {shown(mean(runs, kept))} |")
    return "\n".join(lines) + "\n"


def save_training(records: Sequence[Record], path: Path) -> None:
    """Write the figure of the training: reward by tier, entropy and coefficient of every run; a row a place."""
    rows, methods = list(by_place(records).items()), [method for method, _ in by_method(records)]

    def panel(axes: Axes, row: int, column: int) -> None:
        place, runs = rows[row]
        name, title = list(CURVES.items())[column]
        for run in runs:
            curve = [0.0 if value is None else value for value in run["curves"][name]]
            color = COLORS[methods.index(run["method"]) % len(COLORS)]
            axes.plot(trailing_mean(curve, SPAN), color=color, linewidth=0.9, label=run["method"])
        axes.set_title(f"{place}: {title}", fontsize=8)

    grid(len(rows), len(CURVES), panel, path)
