"""The charts as PNG files, for papers and pages that run no script."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aer_train.report.charts import FEW, Bars, Chart, Panel, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; its yellow, faint on white, is for areas only."""

AREAS = (*COLORS, "#F0E442", "#999999", "#882255")

SHARED = "#777777"
"""Of what belongs to all runs."""

DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)))
"""Runs that share a colour differ in these."""

COLUMNS = 4
"""Panels in a row of a chart."""

STYLES: dict[str, dict[str, Any]] = {
    "line": {"linewidth": 1.8},
    "faint": {"linewidth": 0.8, "alpha": 0.3},
    "target": {"linewidth": 1.2, "linestyle": "--"},
    "marks": {"linestyle": "", "marker": "x", "markersize": 5},
    "points": {"linewidth": 1.5, "marker": "o", "markersize": 4},
    "start": {"linewidth": 1.2, "marker": "o", "markersize": 4, "linestyle": ":"},
}


def chart_figure(chart: Chart, labels: Sequence[str]) -> Figure:
    """Return a chart as a figure.

    Args:
        labels: names of the runs.
    Raises:
        ImportError - matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need: pip install "aer-rl[report]"') from error
    columns = min(len(chart), COLUMNS)
    rows = math.ceil(len(chart) / columns)
    figure = Figure(layout="constrained", facecolor="white", figsize=({1: 7.5, 2: 9.0}.get(columns, 3.7 * columns), 3.3 * rows + 0.4))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(chart) :]:
        axes.remove()
    for axes, panel in zip(grid, chart, strict=False):
        if isinstance(panel, Bars):
            _bars(axes, panel, labels)
        else:
            _curves(axes, panel, labels)
    _legend(figure)
    return figure


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _curves(axes: Axes, panel: Panel, labels: Sequence[str]) -> None:
    for series in panel.series:
        crowded = series.run is not None and len(labels) > FEW  # as many bands as runs would hide the curves
        if series.style == "target" and crowded:
            continue
        color = SHARED if series.run is None else COLORS[series.run % len(COLORS)]
        marked = [i for i, x in enumerate(series.x) if x in panel.ticks] if panel.ticks else None
        axes.plot(series.x, series.y, color=color, label=_name(series, labels), markevery=marked, **_style(series))
        if series.low and not crowded:
            axes.fill_between(series.x, series.low, series.high, color=color, alpha=0.1, linewidth=0)
    if panel.ticks:
        axes.set_xscale("log", base=2)
        axes.set_xticks(panel.ticks, [str(k) for k in panel.ticks])
        axes.minorticks_off()
    _label(axes, panel.title, panel.x, panel.unit)
    low, high = min(axes.dataLim.y0, 0.0), max(axes.dataLim.y1, 0.0)
    room = (high - low) or 1.0
    axes.set_ylim(low - 0.03 * room, high + 0.06 * room)


def _style(series: Series) -> dict[str, Any]:
    style = STYLES[series.style]
    return style if series.run is None or "linestyle" in style else style | {"linestyle": DASHES[series.run // len(COLORS) % len(DASHES)]}


def _name(series: Series, labels: Sequence[str]) -> str:
    if series.style == "faint":
        return "_"  # matplotlib leaves these out of the legend
    return ", ".join(part for part in ("all runs" if series.run is None else labels[series.run], series.note) if part)


def _bars(axes: Axes, bars: Bars, labels: Sequence[str]) -> None:
    start = [0.0] * len(labels)
    for place, (part, values) in enumerate(bars.parts.items()):
        axes.barh(range(len(labels)), values, left=start, color=AREAS[place % len(AREAS)], label=part, height=0.6)
        start = [before + value for before, value in zip(start, values, strict=True)]
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    _label(axes, bars.title, bars.unit, "")
    axes.grid(axis="y", visible=False)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure) -> None:
    """One legend for all panels, below them."""
    entries = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    longest = 45 + 5.2 * max(map(len, entries))  # points: the handle, and a character of the 9 pt font
    columns = max(1, min(len(entries), 4, int(72 * figure.get_figwidth() / longest)))
    rows = math.ceil(len(entries) / columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, rows - 2))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
