"""The tables of a report: what came out of each run, what it called for, its evaluations, settings and samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from aer_train.clock import PARTS
from aer_train.config.parse import leaves
from aer_train.monitor.band import BAND, SPAN, held_entropy, step_response
from aer_train.monitor.hints import hints_of
from aer_train.report.charts import Run

SAMPLES = 40
"""Rows of the sample table."""

LONGEST = 4000
"""Characters of a cell; of a longer text the middle is left out."""

RECENT = 10
"""Steps that the numbers at the end of a run are a mean over."""


def overview(runs: Sequence[Run]) -> str:
    """One line a run: what came out in the end, how entropy was held, and what it took."""
    header = ("run", "steps", "reward", "entropy of step 1", "entropy", "kept", "target", "in band", "overshoot", "coefficient", "at bound",
              "tokens/s", "minutes")  # fmt: skip
    rows = []
    for run in runs:
        entropies, target = run.series("entropy/mean")[1], run.series("entropy/target")[1]
        end = _recent(entropies)
        kept = f"{end / entropies[0]:.0%}" if end is not None and entropies[0] else "-"
        reward, coef = (_number(_recent(run.series(name)[1])) for name in ("reward/mean", "entropy/coef"))
        bound = _number(_share(run.series("entropy/saturated")[1]), ".0%")
        speed = _number(_recent(run.series("perf/tokens_per_second")[1]), ",.0f")
        minutes = f"{sum(run.series('time/step')[1]) / 60:,.1f}"
        first = _number(entropies[0] if entropies else None)
        aim = _number(target[-1] if target else None)
        rows.append([run.label, _steps(run), reward, first, _number(end), kept, aim, *_band(run), coef, bound, speed, minutes])
    note = (
        f"Reward, entropy (nats per token), coefficient and speed: means over the last {RECENT} steps. Target: of what the run holds, the "
        "entropy of a token or of a response, or that of difficult prompts alone (method.held). In band: share of the steps within "
        f"±{BAND:.0%} of the target since the band was first reached (mean of {SPAN} steps). Overshoot: largest such mean from then on, in "
        "targets. At bound: share of all steps with the coefficient at its upper bound."
    )
    return f"<h2>Runs</h2>{_table(header, rows)}<p class=muted>{note}</p>"


def hints(runs: Sequence[Run]) -> str:
    """What the console said while the runs went on."""
    rows = [[run.label, str(hint.step), hint.text] for run in runs for hint in hints_of(run.rows, run.config)]
    return f"<h2>Hints</h2>{_table(('run', 'step', 'hint'), rows, text=True)}" if rows else ""


def evaluation(runs: Sequence[Run]) -> str:
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


def time(runs: Sequence[Run]) -> str:
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


def configuration(runs: Sequence[Run]) -> str:
    """The options in which the runs differ, and all options of each."""
    flat = [dict(leaves(run.config)) for run in runs]
    keys = dict.fromkeys(key for f in flat for key in f if key != "run.out")
    differing = [key for key in keys if len({json.dumps(f.get(key)) for f in flat}) > 1]
    rows = [[key, *(json.dumps(f.get(key)) for f in flat)] for key in differing]
    differences = f"<h2>What differs</h2>{_table(('option', *(run.label for run in runs)), rows, text=True)}" if rows else ""
    full = "".join(
        f"<details><summary>{escape(run.label)}</summary><pre>{escape(json.dumps(run.config, indent=2))}</pre></details>" for run in runs
    )
    return f"{differences}<h2>Configuration</h2>{full}"


def samples(run: Run, folder: Path) -> str:
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


def _steps(run: Run) -> str:
    """Steps done, and of how many when the run is not at its end."""
    done, total = run.rows[-1]["step"], run.config.get("run", {}).get("steps")
    return str(done) if total is None or done >= total else f"{done} of {total}"


def _band(run: Run) -> tuple[str, str]:
    """Share of the steps in the band and overshoot."""
    pairs = [(held, row["entropy/target"]) for row in run.rows if row.get("entropy/target") and (held := held_entropy(row)) is not None]
    if not pairs:
        return "-", "-"
    found = step_response(*zip(*pairs, strict=True))
    return ("never", "-") if found.reached is None else (f"{found.in_band:.0%}", f"{found.largest:.2f}")


def _recent(values: Sequence[float]) -> float | None:
    """Mean of the last values."""
    return _share(values[-RECENT:])


def _share(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _shorten(text: str) -> str:
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], text: bool = False) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    cell = "<td><pre>{}</pre></td>" if text else "<td>{}</td>"
    body = "".join(f"<tr>{''.join(cell.format(escape(value)) for value in row)}</tr>" for row in rows)
    return f"<div class=scroll><table{' class=text' if text else ''}><tr>{head}</tr>{body}</table></div>"
