"""Time and peak memory against what is swept, and the main workloads as bars."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.table import Row

AXES = {"tokens": "N", "vocabulary": "V", "useful share": "useful_share", "sequence length": "N"}
LABELS = {"N": "tokens", "V": "vocabulary", "useful_share": "share of tokens with a gradient"}


def save_plots(rows: list[Row], folder: Path) -> None:
    """One picture a sweep with two panels, and one of the main workloads."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for sweep, axis in AXES.items():
        points = [r for r in rows if r["sweep"] == sweep and "median_ms" in r]
        if points:
            figure, panels = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
            for panel, (field, unit) in zip(panels, (("median_ms", "ms"), ("peak_mib", "peak MiB beyond inputs")), strict=True):
                _lines(panel, points, axis, field)
                panel.set(xlabel=LABELS[axis], ylabel=unit, yscale="log", xscale="linear" if axis == "useful_share" else "log")
                panel.grid(alpha=0.3, which="both")
            panels[0].legend(fontsize=8)
            figure.suptitle(f"policy loss with entropy bonus, forward and backward, against {LABELS[axis]}", fontsize=10)
            figure.savefig(folder / f"{sweep.replace(' ', '_')}.png", dpi=110)
            plt.close(figure)
    main = [r for r in rows if r["sweep"] == "main" and "median_ms" in r]
    if main:
        _bars(plt, main, folder / "main.png")


def _lines(panel: Any, points: list[Row], axis: str, field: str) -> None:
    for name in dict.fromkeys(r["provider"] for r in points):
        if field == "peak_mib" and name == "bare products":
            continue
        own = sorted((r for r in points if r["provider"] == name), key=lambda r: r[axis])
        panel.plot([r[axis] for r in own], [r[field] for r in own], marker="o", markersize=4, label=name)


def _bars(plt: Any, rows: list[Row], path: Path) -> None:
    groups = [(label, sorted(members, key=lambda r: -r["median_ms"])) for label, members in groupby(rows, key=lambda r: r["workload"])]
    heights = [len(members) for _, members in groups]
    figure, panels = plt.subplots(len(groups), 2, figsize=(11, 0.32 * sum(heights) + 0.9 * len(groups)), squeeze=False,
                                  gridspec_kw={"height_ratios": heights}, constrained_layout=True)  # fmt: skip
    for (label, members), (time, memory) in zip(groups, panels, strict=True):
        names = [r["provider"] for r in members]
        colors = ["tab:green" if n.startswith("aer_kernels") else "lightgray" if n == "bare products" else "tab:blue" for n in names]
        for panel, field, unit in ((time, "median_ms", "ms"), (memory, "peak_mib", "MiB")):
            panel.barh(names, [r[field] for r in members], color=colors)
            panel.set_title(f"{label}: {unit}", fontsize=8, loc="left")
            panel.tick_params(labelsize=7)
        memory.set_yticklabels([])
    figure.savefig(path, dpi=110)
    plt.close(figure)
