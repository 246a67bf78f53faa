"""The figures of the study, from records alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aer_train.evaluation.estimates import shown_ks
from aer_train.monitor.band import BAND, SPAN, trailing_mean
from aer_train.report.plots import COLORS
from study.control import has_target
from study.evaluate import pass_at
from study.records import Record, by_place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = ("-", "--", ":")

Line = Callable[[Record], list[float]]


def step_responses(records: Sequence[Record], path: Path) -> None:
    """Entropy over its target and coefficient of every run: a column a controller, a row a setting."""
    methods, settings = _unique(records, "method"), _unique(records, "setting")
    lines: list[tuple[str, Line, bool]] = []
    for setting in settings:
        lines.append((f"{setting}: entropy / target", relative, True))
        lines.append((f"{setting}: coefficient", coefficient, False))

    def panel(axes: Axes, row: int, column: int) -> None:
        title, line, banded = lines[row]
        members = [r for r in records if r["method"] == methods[column] and r["setting"] == settings[row // 2]]
        scales = sorted({record["lr_scale"] for record in members})
        for record in members:
            color = COLORS[scales.index(record["lr_scale"]) % len(COLORS)]
            axes.plot(line(record), color=color, linewidth=0.7, alpha=0.6, label=f"learning rate x {record['lr_scale']:g}")
        if banded:
            axes.axhspan(1 - BAND, 1 + BAND, color="#009E73", alpha=0.12, linewidth=0)
            axes.set_ylim(0, 2)
        axes.set_title(f"{methods[column]}\n{title}", fontsize=8)

    grid(2 * len(settings), len(methods), panel, path)


def outcomes(records: Sequence[Record], split: str, path: Path) -> None:
    """pass@k on hard and easy prompts, entropy and coefficient by method: means over seeds, a row a place."""
    methods = _unique(records, "method")
    rows = list(by_place(records).items())

    def panel(axes: Axes, row: int, column: int) -> None:
        title, runs = rows[row]
        for index, method in enumerate(methods):
            members = [r for r in runs if r["method"] == method and r["diverged"] is None]
            if not members:
                continue
            style: dict[str, Any] = {"color": COLORS[index % len(COLORS)], "linewidth": 1.3}
            style["linestyle"] = STYLES[index // len(COLORS) % len(STYLES)]
            style["label"] = method
            if column < 2:
                tier = ("hard", "easy")[column]
                ks = shown_ks(members[0]["samples"])
                means = [sum(pass_at(r["right"][split][tier], r["samples"], k) for r in members) / len(members) for k in ks]
                axes.plot(ks, means, marker="o", markersize=3, **style)
                axes.set_xscale("log", base=2)
                axes.set_title(f"{title}: pass@k, {tier}", fontsize=8)
            else:
                curves = [trailing_mean(r["curves"]["entropy"], SPAN) if column == 2 else coefficient(r) for r in members]
                axes.plot([sum(step) / len(step) for step in zip(*curves, strict=True)], **style)
                axes.set_title(f"{title}: {'entropy, nats a token' if column == 2 else 'coefficient'}", fontsize=8)
                if column == 2:  # what explodes leaves the panel, so that the others can be told apart
                    axes.set_ylim(0, 2 * members[0]["curves"]["entropy"][0])

    grid(len(rows), 4, panel, path)


def relative(record: Record) -> list[float]:
    """Return the smoothed entropy of a run over its target; over its first value when it has none. NaN where it waits."""
    smoothed = trailing_mean(record["curves"]["controlled"], SPAN)
    targets = record["curves"]["target"] if has_target(record) else smoothed[:1] * len(smoothed)
    return [value / (target or math.nan) for value, target in zip(smoothed, targets, strict=True)]


def coefficient(record: Record) -> list[float]:
    """Return the coefficient of a run, NaN at the steps that have none: those of a method that moves something else."""
    return [math.nan if value is None else value for value in record["curves"]["coef"]]


def grid(rows: int, columns: int, panel: Callable[[Axes, int, int], None], path: Path) -> None:
    """Write a grid of panels with one legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * columns + 0.5, 2.1 * rows + 0.8), layout="constrained", facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False)
    entries: dict[str, Any] = {}
    for row in range(rows):
        for column in range(columns):
            axes = grid[row][column]
            panel(axes, row, column)
            axes.tick_params(labelsize=7)
            axes.grid(color="#dddddd", linewidth=0.5)
            axes.spines[["top", "right"]].set_visible(False)
            entries |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=min(6, len(entries)), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _unique(records: Sequence[Record], key: str) -> list[str]:
    return list(dict.fromkeys(record[key] for record in records))
