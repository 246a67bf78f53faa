"""Differences between methods with their 95 % intervals, drawn: over runs in the row of a place, over places in others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aer_train.report.plots import COLORS
from study.intervals import difference
from study.measures import SHOWN, measured
from study.records import Record, by_place

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Contrast:
    """One interval of a figure: `ours` - `theirs` over these records."""

    row: str
    series: str
    """What has a colour and a line in the legend."""
    records: Sequence[Record]
    ours: str
    theirs: str


def by_places(records: Sequence[Record], ours: str, others: Sequence[str]) -> list[Contrast]:
    """One row a place and one for all, one series for each of the others."""
    places = by_place(records)
    rows = [*places.items(), (f"all {len(places)} settings", records)]
    return [Contrast(row, f"{ours} - {other}", members, ours, other) for row, members in rows for other in others]


def by_methods(records: Sequence[Record], ours: str) -> list[Contrast]:
    """One row for each other method that was run, over all the places that it shares."""
    methods = dict.fromkeys(record["method"] for record in records)
    return [Contrast(method, f"{ours} - what the row names", records, ours, method) for method in methods if method != ours]


def save_forest(contrasts: Sequence[Contrast], split: str, path: Path) -> None:
    """Draw a panel a measure; the series of a row lie below each other."""
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(contrast.row for contrast in contrasts))
    series = len({contrast.series for contrast in contrasts})
    figure = Figure(figsize=(11, (0.18 + 0.09 * series) * len(rows) + 1.5), layout="constrained", facecolor="white")
    grid = figure.subplots(1, len(SHOWN), sharey=True, squeeze=False)
    for axes, name in zip(grid[0], SHOWN, strict=True):
        _panel(axes, contrasts, rows, split, name)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, contrasts: Sequence[Contrast], rows: list[str], split: str, name: str) -> None:
    names = list(dict.fromkeys(contrast.series for contrast in contrasts))
    for index, series in enumerate(names):
        members = [contrast for contrast in contrasts if contrast.series == series]
        values = [difference(one.records, measured(split, name), one.ours, one.theirs) for one in members]
        heights = [rows.index(one.row) + 0.6 * ((index + 0.5) / len(names) - 0.5) for one in members]
        means, widths = [value.mean for value in values], [value.half_width for value in values]
        axes.errorbar(means, heights, xerr=widths, fmt="o", markersize=4, capsize=2, color=COLORS[index], label=series)
    axes.axvline(0, color="#777777", linewidth=0.8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(f"{name}, difference", fontsize=9)
    axes.grid(axis="x", color="#dddddd", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
