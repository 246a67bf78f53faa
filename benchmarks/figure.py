"""`python -m benchmarks.figure`: the README's figure, docs/speed.png, from committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.table import Row

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu-2026-11-26" / "results.json"
TITLE = "Policy loss with entropy bonus, forward and backward: {N:,} tokens, vocabulary {V:,}, width {D:,}, bf16, {hardware}"
LEFT_OUT = ("aer_kernels (impl=torch)",)
"""The slow form for debugging: its bar would hide all others."""

COLORS = {"aer_kernels": "#009E73", "bare products": "#bbbbbb"}


def main() -> None:
    """Write the figure."""
    save(measured(), ROOT / "docs" / "speed.png")


def measured() -> list[Row]:
    """Return the rows that it shows, slowest first."""
    rows = [row for row in json.loads(RESULTS.read_text()) if row["kind"] == "policy" and "median_ms" in row]
    return sorted((row for row in rows if row["provider"] not in LEFT_OUT), key=lambda row: -row["median_ms"])


def save(rows: list[Row], path: Path) -> None:
    """Draw time and peak memory of these rows, one bar a provider."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.3 * len(rows) + 0.9), layout="constrained", facecolor="white")
    figure.suptitle(TITLE.format(**rows[0]), fontsize=9)
    time, memory = figure.subplots(1, 2, sharey=True)
    _bars(time, rows, "median_ms", "ms", "time", 1)
    _bars(memory, rows, "peak_mib", "GiB", "peak memory beyond the inputs", 1024)
    figure.savefig(path, dpi=130)


def _bars(axes: Any, rows: list[Row], field: str, unit: str, title: str, divisor: int) -> None:
    values = [row[field] / divisor for row in rows]
    bars = axes.barh([_label(row) for row in rows], values, color=[COLORS.get(row["provider"], "#0072B2") for row in rows])
    axes.bar_label(bars, [f"{value:.1f} {unit}" if value else "" for value in values], padding=3, fontsize=8)
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.set_xticks([])
    axes.margins(x=0.18)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _label(row: Row) -> str:
    name = {"bare products": "matrix products alone", "Liger scaled cross-entropy": "Liger"}.get(row["provider"], row["provider"])
    return f"{name} {row['version']}" if name.startswith(("verl", "Liger")) else name


if __name__ == "__main__":
    main()
