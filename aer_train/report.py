"""report.html: one self-contained page about one or several runs, and the same charts as PNG files beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from aer_train.clock import PARTS
from aer_train.plots import Run, charts, png
from aer_train.record import write_atomic

SAMPLES = 40
"""Rows of the sample table."""

LONGEST = 4000
"""Characters of a cell; of a longer text the middle is left out."""

RECENT = 10
"""Steps that the numbers at the end of a run are a mean over."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --muted: #888; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1080px; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: 13px; } th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); }
th, td { text-align: right; } th:first-child, td:first-child, .text td, .text th { text-align: left; }
td pre { margin: 0; white-space: pre-wrap; word-break: break-word; max-width: 30rem; max-height: 16rem; overflow-y: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); gap: 1rem; }
.charts img { width: 100%; background: #fff; border-radius: 6px; } .wide { grid-column: 1 / -1; }
.scroll, details pre { overflow-x: auto; } .muted { color: var(--muted); }
"""


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write report.html and plots/*.png, and return the path of the page.

    Args:
        runs: run folders; several are overlaid, in this order.
        out: folder for the report; None is the first run folder.
    Raises:
        ValueError - no folder is given, one is given twice, is no run, or has no step yet;
        ImportError - matplotlib is not installed.
    """
    folders = [Path(run) for run in runs]
    if not folders or len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"runs must be different run folders, at least one, got {[str(folder) for folder in folders]}")
    read = [Run.read(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]
    out = folders[0] if out is None else out
    images = {name: png(figure) for name, figure in charts(read).items()}
    (out / "plots").mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        write_atomic(out / "plots" / f"{name}.png", image)
    samples = [_samples(run, folder) for run, folder in zip(read, folders, strict=True)]
    body = [_overview(read), _evaluation(read), _time(read), _chart_section(images), _configuration(read), *samples]
    title = " / ".join(run.label for run in read)
    head = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    write_atomic(out / "report.html", f"{head}<h1>{escape(title)}</h1>{''.join(body)}</html>\n")
    return out / "report.html"


def _chart_section(images: dict[str, bytes]) -> str:
    cells = []
    for name, image in images.items():
        wide = " class=wide" if name in ("reward", "pass_at_k", "accuracy") else ""
        cells.append(f'<img{wide} alt="{name}" src="data:image/png;base64,{base64.b64encode(image).decode()}">')
    return f"<h2>Curves</h2><div class=charts>{''.join(cells)}</div>"


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folder names; the whole paths when two runs have the same name."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _overview(runs: Sequence[Run]) -> str:
    """One line a run: what came out in the end, and what it took."""
    rows = []
    for run in runs:
        entropies = run.series("entropy/mean")[1]
        end = _recent(entropies)
        kept = f"{end / entropies[0]:.0%}" if end is not None and entropies[0] else "-"
        minutes = sum(run.series("time/step")[1]) / 60
        reward, coef = (_recent(run.series(name)[1]) for name in ("reward/mean", "entropy/coef"))
        speed = _recent(run.series("perf/tokens_per_second")[1])
        cells = [_number(reward), _number(entropies[0] if entropies else None), _number(end), kept, _number(coef), _number(speed, ",.0f")]
        rows.append([run.label, str(run.rows[-1]["step"]), *cells, f"{minutes:,.1f}"])
    header = ("run", "steps", "reward", "entropy of step 1 (nats)", "entropy (nats)", "entropy kept", "coefficient", "tokens/s", "minutes")
    note = f"<p class=muted>Reward, entropy, coefficient and speed are means over the last {RECENT} steps.</p>"
    return f"<h2>Runs</h2>{_table(header, rows)}{note}"


def _evaluation(runs: Sequence[Run]) -> str:
    """Accuracy and pass@k of each run and tier: the first, the best and the last evaluation."""
    rows = []
    for run in runs:
        for tier in dict.fromkeys(tier for result in run.evals.values() for tier in result["tiers"]):
            found = {step: result["tiers"][tier] for step, result in run.evals.items() if tier in result["tiers"]}
            k = max(found[max(found)]["pass@k"], key=int)
            measures = {"accuracy": {step: tiers["accuracy"] for step, tiers in found.items()}}
            measures[f"pass@{k}"] = {step: tiers["pass@k"][k] for step, tiers in found.items() if k in tiers["pass@k"]}
            for name, values in measures.items():
                shown = (min(values), max(values, key=values.__getitem__), max(values))
                problems = str(found[max(found)]["problems"])
                rows.append([run.label, tier, problems, name, *(f"{values[step]:.3f} ({step})" for step in shown)])
    header = ("run", "tier", "problems", "measure", "first (step)", "best (step)", "last (step)")
    return f"<h2>Evaluation</h2>{_table(header, rows)}" if rows else ""


def _time(runs: Sequence[Run]) -> str:
    """What a step spends its time on: mean seconds, the share of each part, and tokens a second."""
    shown = [part for part in PARTS if any(sum(run.series(f"time/{part}")[1]) for run in runs)]
    rows = []
    for run in runs:
        seconds = {part: sum(run.series(f"time/{part}")[1]) for part in shown}
        total = sum(seconds.values())
        if total:
            shares = [f"{seconds[part] / total:.0%}" for part in shown]
            speeds = [_number(_recent(run.series(f"perf/{name}_tokens_per_second")[1]), ",.0f") for name in ("rollout", "train")]
            rows.append([run.label, f"{total / len(run.rows):,.3g}", *shares, *speeds])
    header = ("run", "seconds a step", *shown, "tokens/s sampled", "tokens/s trained")
    return f"<h2>Time</h2>{_table(header, rows)}" if rows else ""


def _recent(values: Sequence[float]) -> float | None:
    """Mean of the last values."""
    recent = values[-RECENT:]
    return sum(recent) / len(recent) if recent else None


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _configuration(runs: Sequence[Run]) -> str:
    flat = [dict(_leaves(run.config)) for run in runs]
    keys = dict.fromkeys(key for f in flat for key in f if key != "run.out")
    differing = [key for key in keys if len({json.dumps(f.get(key)) for f in flat}) > 1]
    rows = [[key, *(json.dumps(f.get(key)) for f in flat)] for key in differing]
    differences = f"<h2>What differs</h2>{_table(('option', *(run.label for run in runs)), rows, text=True)}" if rows else ""
    full = "".join(
        f"<details><summary>{escape(run.label)}</summary><pre>{escape(json.dumps(run.config, indent=2))}</pre></details>" for run in runs
    )
    return f"{differences}<h2>Configuration</h2>{full}"


def _samples(run: Run, folder: Path) -> str:
    """Some samples of the last recorded step, spread over its prompts."""
    files = sorted((folder / "samples").glob("step_*.parquet"))
    if not files:
        return ""
    import pyarrow.parquet as pq

    rows = pq.read_table(files[-1]).to_pylist()
    rows = rows[:: max(1, -(-len(rows) // SAMPLES))]
    columns = ("tier", "prompt", "response", "answer", "outcome", "reward", "advantage", "num_tokens", "entropy_coef")
    cells = [[f"{row[c]:.3g}" if isinstance(row[c], float) else _shorten(str(row[c])) for c in columns] for row in rows]
    title = f"Samples of {run.label}, step {rows[0]['step']}"
    return f"<h2>{escape(title)}</h2><details><summary>{len(rows)} samples</summary>{_table(columns, cells, text=True)}</details>"


def _shorten(text: str) -> str:
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], text: bool = False) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    cell = "<td><pre>{}</pre></td>" if text else "<td>{}</td>"
    body = "".join(f"<tr>{''.join(cell.format(escape(value)) for value in row)}</tr>" for row in rows)
    return f"<div class=scroll><table{' class=text' if text else ''}><tr>{head}</tr>{body}</table></div>"
