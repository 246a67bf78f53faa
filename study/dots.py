"""A row a method, a dot a run, a colour a setting: who finds the strategy, and at what cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aer_train.report.plots import COLORS
from study.failures import FOUND
from study.measures import SHOWN, kept, measured
from study.records import Record, by_place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 2, 5, 10, 20)
"""Shares of the initial entropy that are marked."""

HEIGHT = 0.6
"""Share of a row over which its settings are spread."""


def save_dots(records: Sequence[Record], methods: Sequence[str], labels: Sequence[str], path: Path) -> None:
    """Draw a panel a measure.

    Args:
        methods: one a row, from above.
        labels: their names.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

    panels: list[tuple[str, Callable[[Record], float]]] = [(name, measured("test", name)) for name in SHOWN]
    panels.append(("entropy kept", kept))
    figure = Figure(figsize=(11, 0.24 * len(methods) + 1.2), layout="constrained", facecolor="white")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, number) in zip(grid, panels, strict=True):
        _panel(axes, records, methods, number)
        axes.set_title(name, fontsize=9)
    grid[0].axvline(FOUND, color="#777777", linewidth=0.8, linestyle=":")
    grid[-1].set_xscale("log")
    grid[-1].xaxis.set_major_locator(FixedLocator(SHARES))
    grid[-1].xaxis.set_major_formatter(ScalarFormatter())
    grid[-1].xaxis.set_minor_formatter(NullFormatter())
    grid[0].set_yticks(range(len(methods)), labels, fontsize=8)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, records: Sequence[Record], methods: Sequence[str], number: Callable[[Record], float]) -> None:
    places = by_place(records)
    for index, (place, members) in enumerate(places.items()):
        found = [(number(record), methods.index(record["method"])) for record in members if record["method"] in methods]
        shift = HEIGHT * ((index + 0.5) / len(places) - 0.5)
        axes.plot(
            [value for value, _ in found],
            [row + shift for _, row in found],
            "o",
            markersize=3.5,
            color=COLORS[index % len(COLORS)],
            label=place,
        )
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
