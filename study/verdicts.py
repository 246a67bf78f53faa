"""A row a setting, a panel a method, a dot a run: which found the strategy, which did not, which broke, and where the method failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aer_train.report.plots import COLORS
from study.failures import FOUND, REFERENCE, broke, failures, found
from study.measures import measured
from study.records import Record, by_place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES: dict[str, dict[str, Any]] = {
    "found": {"marker": "o", "color": COLORS[2]},
    "not found": {"marker": "o", "color": COLORS[1], "markerfacecolor": "white"},
    "broke": {"marker": "x", "color": COLORS[6]},
}
"""How a run is drawn."""

FAILED = "#f4dcd0"
"""Behind the runs of a method at a setting where it failed."""

HEIGHT = 0.6
"""Share of a row over which its runs are spread."""

NAMES = {
    "countdown": "Countdown-3", "countdown4": "Countdown-4", "worked": "Worked", "mixed": "Mixed",
    "small": "", "base": "larger policy", "drgrpo": "undivided advantages", "fresh": "other warm-up",
    "policies": "17 tokens", "words200": "217 tokens", "words2000": "2,017 tokens", "words16000": "16,017 tokens",
}  # fmt: skip
"""What readers call the parts of a setting's name."""


def spoken(place: str) -> str:
    """Return the name of a setting for readers: Countdown-3, larger policy, lr x 2 of countdown-base, lr x 2."""
    setting, *rest = place.split(", ")
    return ", ".join(part for part in [*(NAMES[word] for word in setting.split("-")), *rest] if part)


def verdict(run: Record, reference: Sequence[Record]) -> str:
    """Return which of STYLES a run has; broke comes first.

    Args:
        reference: runs of plain GRPO at the same setting.
    """
    if broke(run, reference):
        return "broke"
    return "found" if found(run) else "not found"


def save_verdicts(records: Sequence[Record], labels: Mapping[str, str], path: Path) -> None:
    """Draw hard pass@1 of every run.

    Args:
        labels: name for readers by method; a panel each, from the left.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    places = by_place(records)
    figure = Figure(figsize=(max(11, 1.35 * len(labels)), 0.27 * len(places) + 1.4), layout="constrained", facecolor="white")
    grid = figure.subplots(1, len(labels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (method, label) in zip(grid, labels.items(), strict=True):
        failed = failures(records, method)
        _panel(axes, list(places.values()), method, [failed[place] for place in places])
        axes.set_title(f"{label}\nfails in {sum(failed.values())} of {len(failed)}", fontsize=9)
    grid[0].set_yticks(range(len(places)), list(map(spoken, places)), fontsize=8)
    grid[0].set_ylim(len(places) - 0.5, -0.5)
    runs = [Line2D([], [], linestyle="", markersize=4, label=name, **style) for name, style in STYLES.items()]
    handles = [*runs, Patch(color=FAILED, label="the method fails in this setting")]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _panel(axes: Axes, places: Sequence[Sequence[Record]], method: str, failed: Sequence[bool]) -> None:
    number = measured("test", "hard pass@1")
    for row, members in enumerate(places):
        runs = [record for record in members if record["method"] == method]
        reference = [record for record in members if record["method"] == REFERENCE]
        if failed[row]:
            axes.axhspan(row - 0.5, row + 0.5, color=FAILED, linewidth=0)
        for index, run in enumerate(runs):
            height = row + HEIGHT * ((index + 0.5) / len(runs) - 0.5)
            axes.plot([number(run)], [height], linestyle="", markersize=4, **STYLES[verdict(run, reference)])
    axes.axvline(FOUND, color="#777777", linewidth=0.8, linestyle=":")
    axes.set_xlabel("hard pass@1", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", color="#dddddd", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
