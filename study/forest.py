"""Differences between methods with their 95 % intervals, for those who would rather look than read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aer_train.report.plots import COLORS
from study.places import SHOWN
from study.records import Record, by_place
from study.tables import difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Contrast:
    """One interval of a figure: `ours` - `theirs` over these records."""

    row: str
    records: Sequence[Record]
    ours: str
    theirs: str

    @property
    def label(self) -> str:
        return f"{self.ours} - {self.theirs}"


def by_places(records: Sequence[Record], ours: str, others: Sequence[str]) -> list[Contrast]:
    """One row a place and one for all, one colour for each of the others."""
    rows = [*by_place(records).items(), (f"all {len(by_place(records))} places", records)]
    return [Contrast(row, members, ours, other) for row, members in rows for other in others]


def by_methods(records: Sequence[Record], ours: str) -> list[Contrast]:
    """One row for each other method that was run, over all the places that it shares."""
    methods = dict.fromkeys(record["method"] for record in records)
    return [Contrast(method, records, ours, method) for method in methods if method != ours]


def draw(contrasts: Sequence[Contrast], split: str, path: Path) -> None:
    """Draw a panel a measure and a row a label; contrasts of the same row lie below each other, one colour each where rows have several."""
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(contrast.row for contrast in contrasts))
    figure = Figure(figsize=(11, 0.36 * len(rows) + 1.5), layout="constrained", facecolor="white")
    grid = figure.subplots(1, len(SHOWN), sharey=True, squeeze=False)
    for axes, name in zip(grid[0], SHOWN, strict=True):
        _panel(axes, contrasts, rows, split, name)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, contrasts: Sequence[Contrast], rows: list[str], split: str, name: str) -> None:
    several = len(contrasts) > len(rows)
    series = list(dict.fromkeys(contrast.theirs for contrast in contrasts)) if several else []
    for index, contrast in enumerate(contrasts):
        value = difference(contrast.records, split, name, contrast.ours, contrast.theirs)
        at = series.index(contrast.theirs) if several else 0
        height = rows.index(contrast.row) + (at - (len(series) - 1) / 2) * 0.3 if several else rows.index(contrast.row)
        label = contrast.label if several else f"{contrast.ours} - what the row names"
        shown = label if index < max(1, len(series)) else None
        axes.errorbar(value.mean, height, xerr=value.half_width, fmt="o", markersize=4, capsize=2, color=COLORS[at], label=shown)
    axes.axvline(0, color="#777777", linewidth=0.8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(f"{name}, difference", fontsize=9)
    axes.grid(axis="x", color="#dddddd", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
