"""report.html: one self-contained page about one or several runs, and its charts as PNG files beside it."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from aer_train.report.charts import Chart, Run, charts
from aer_train.report.plots import chart_figure, png
from aer_train.report.tables import configuration, evaluation, hints, overview, samples, time
from aer_train.run.files import write_atomic

DIGITS = 5
"""Significant digits of the values in the page."""

Drawn = dict[str, dict[str, Chart]]


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write report.html, and plots/*.png where matplotlib is installed, and return the path of the page.

    Args:
        runs: run folders; several are overlaid, in this order.
        out: folder for the report; None is the first run folder.
    Raises:
        ValueError - no folder is given, one is given twice, is no run, or has no step yet.
    """
    folders = [Path(run) for run in runs]
    if not folders or len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"runs must be different run folders, at least one, got {[str(folder) for folder in folders]}")
    read = [Run.read(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]
    out = folders[0] if out is None else out
    drawn = charts(read)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "report.html", _page(read, folders, drawn))
    if importlib.util.find_spec("matplotlib") is not None:
        _write_plots(drawn, [run.label for run in read], out / "plots")
    return out / "report.html"


def _write_plots(drawn: Drawn, labels: list[str], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, chart in ((name, chart) for part in drawn.values() for name, chart in part.items()):
        write_atomic(folder / f"{name}.png", png(chart_figure(chart, labels)))


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folder names; where two are the same, what the paths do not share."""
    paths = [folder.resolve() for folder in folders]
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath([path.parent for path in paths])
    return [str(path.relative_to(common)) for path in paths]


def _page(runs: Sequence[Run], folders: Sequence[Path], drawn: Drawn) -> str:
    files = resources.files("aer_train.report")
    style, script = ((files / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    title = escape(_title([run.label for run in runs]))
    # responses of the model are on the page: no script but this one may run, whatever they hold
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = [
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f'<meta http-equiv=Content-Security-Policy content="{policy}"><title>{title}</title><style>{style}</style></head>',
    ]
    missing = "<noscript><p>The curves need JavaScript; plots/ beside this page has them as PNG files.</p></noscript>"
    curves = f"<h2>Curves</h2>{missing}<nav id=legend></nav><div id=charts></div>"
    body = [overview(runs), hints(runs), curves, evaluation(runs), time(runs), configuration(runs)]
    body += [samples(run, folder) for run, folder in zip(runs, folders, strict=True)]
    data = f"<script type=application/json id=data>{_data(runs, drawn)}</script><script>{script}</script>"
    return f"{''.join(head)}<body><h1>{title}</h1>{''.join(body)}{data}</body></html>\n"


def _title(labels: list[str]) -> str:
    return " / ".join(labels) if len(labels) <= 4 else f"{' / '.join(labels[:3])} and {len(labels) - 3} more runs"


def _data(runs: Sequence[Run], drawn: Drawn) -> str:
    """The charts as JSON that may stand in a page."""
    sections = [
        {"heading": heading, "panels": [_rounded(asdict(panel)) for chart in part.values() for panel in chart]}
        for heading, part in drawn.items()
    ]
    text = json.dumps({"runs": [run.label for run in runs], "sections": sections}, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _rounded(value: Any) -> Any:
    """The same with fewer digits in every number."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
