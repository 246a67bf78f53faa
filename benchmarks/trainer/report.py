"""Rows from what the processes measured, the table, and the curves that show that both trainers really train."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from itertools import groupby, pairwise
from pathlib import Path

from benchmarks.measure import summary
from benchmarks.table import Row
from benchmarks.trainer.cases import GROUP_SIZE, Case

BESIDE_TRL = "The training loop beside TRL's GRPOTrainer"
COST = "AER beside plain GRPO in the same trainer"
SHARED_PROMPTS = "Prompts read once a group, or for each response, beside TRL's GRPOTrainer"
DEAD_SAMPLES = "Steps with dead samples: measured or skipped, beside TRL's GRPOTrainer"
ENDS = 5
"""Steps at either end whose mean reward the table gives (a third of the steps when there are fewer than 15)."""


def row(case: Case, trainer: str, runs: list[Row]) -> Row:
    """Return one row from the runs of a trainer: medians over all timed steps of all runs, with the 20th and 80th percentile."""
    found = {"case": case.name, "trainer": trainer, "settings": asdict(case), "runs": len(runs)}
    errors = [run["error"] for run in runs if "error" in run]
    if errors:
        return found | {"status": f"failed: {errors[0]}"}
    seconds, cpu = ([[b[c] - a[c] for a, b in pairwise(run["steps"])][case.excluded - 1 :] for run in runs] for c in ("clock", "cpu"))
    timed = [step for run in runs for step in run["steps"][case.excluded :]]
    rollouts = [step["parts"].get("rollout", 0.0) for step in timed]
    every = [value for run in seconds for value in run]
    timing = summary([1e3 * value for value in every])
    return found | {
        "status": "measured",
        "version": runs[0]["version"],
        **timing._asdict(),
        "median_ms_of_runs": [1e3 * statistics.median(run) for run in seconds],
        "median_ms_outside_rollouts": 1e3 * statistics.median(whole - part for whole, part in zip(every, rollouts, strict=True)),
        "median_cpu_ms": 1e3 * statistics.median(value for run in cpu for value in run),
        "steps_per_s": 1e3 / timing.median_ms,
        "tokens_per_s": sum(step["tokens"] for step in timed) / sum(every),
        "parts_ms": {part: 1e3 * statistics.median(step["parts"].get(part, 0.0) for step in timed) for part in timed[0]["parts"]},
        "peak_mib": max(run["peak_mib"] for run in runs),
        "imports_mib": max(run["imports_mib"] for run in runs),
        "gpu_peak_mib": max(run["gpu_peak_mib"] for run in runs) if "gpu_peak_mib" in runs[0] else None,
        "reward": [[step["reward"] for step in run["steps"]] for run in runs],
        "entropy": [[step["entropy"] for step in run["steps"]] for run in runs],
    }


def write(rows: list[Row], title: str = BESIDE_TRL) -> str:
    """The whole table: where it was measured, every case with both trainers, losses included."""
    here = rows[0]
    where = f"{here['hardware']}, {here['threads']} thread{'s' if here['threads'] > 1 else ''}, torch {here['torch']}"
    prompts = " or ".join(map(str, sorted({row["settings"]["prompts"] for row in rows}, reverse=True)))
    lines = [
        f"# {title}",
        "",
        f"{where}, Python {here['python']}, commit {here['commit']}, {here['date']}.",
        "",
        f"{prompts} prompts x {GROUP_SIZE} responses a step. A step is timed from the end of the one before, with all that the",
        "trainer does in it; medians over all timed steps of all runs, the 20th and 80th percentile beside them. CPU time is that of the",
        "process: other work on the machine disturbs it less. Memory is the process's peak; beside it what is above the imports. Rewards",
        "and entropies (nats) are means over the first and the last steps of each run. More: benchmarks/README.md.",
        "",
    ]
    lines += _by_share([row for row in rows if row["settings"]["dead"] is not None and row["status"] == "measured"])
    for name, group in groupby(rows, key=lambda row: row["case"]):
        lines += [f"## {name}", "", *_table(list(group)), ""]
    return "\n".join(lines)


def _table(rows: list[Row]) -> list[str]:
    on_gpu = any(row.get("gpu_peak_mib") for row in rows)
    columns = ["trainer", "version", "steps/s", "tokens/s", "ms a step", "p20 - p80", "CPU ms", "parts, ms", "peak MiB", "above imports"]
    columns += ["GPU peak MiB"] * on_gpu + ["reward first -> last", "entropy first -> last"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        if row["status"] != "measured":
            said = " ".join(row["status"].split())[-300:].replace("|", "/")
            lines.append(f"| {row['trainer']} | {said} |{' |' * (len(columns) - 2)}")
            continue
        cells = [row["trainer"], row["version"], f"{row['steps_per_s']:.2f}", f"{row['tokens_per_s']:,.0f}", f"{row['median_ms']:.0f}"]
        cells += [f"{row['p20_ms']:.0f} - {row['p80_ms']:.0f}", f"{row['median_cpu_ms']:.0f}", _parts(row)]
        cells += [f"{row['peak_mib']:.0f}", f"{row['peak_mib'] - row['imports_mib']:.0f}"]
        cells += [f"{row['gpu_peak_mib']:.0f}"] if on_gpu else []
        cells += [_ends(row["reward"]), _ends(row["entropy"])]
        lines.append(f"| {' | '.join(cells)} |")
    measured = {row["trainer"]: row for row in rows if row["status"] == "measured"}
    *others, (last, peer) = measured.items() if len(measured) > 1 else [("", {})]
    for name, ours in others:
        memory = "gpu_peak_mib" if on_gpu else "peak_mib"
        ratios = (ours[field] / peer[field] for field in ("median_ms", "median_ms_outside_rollouts", "median_cpu_ms", memory))
        told = "time {:.3f}, outside of rollouts {:.3f}, CPU time {:.3f}, peak memory {:.3f}.".format(*ratios)
        lines += ["", f"{name} / {last}: {told}"]
    return lines


def _by_share(rows: list[Row]) -> list[str]:
    """What a step costs as more of its samples are dead: outside of rollouts, as a multiple of our own step without any, and whole."""
    lines: list[str] = []
    for shape, group in groupby(rows, key=lambda row: row["case"].split(",")[0]):
        members = list(group)
        sides = list(dict.fromkeys(row["trainer"] for row in members))
        full = next((row["median_ms_outside_rollouts"] for row in members if row["trainer"] == sides[0]), 1.0)
        lines += [f"## {shape}: by the share of dead samples", "", "Outside of rollouts, 1 is our step without dead samples.", ""]
        lines += [f"| dead | {' | '.join(sides)} | whole step, {sides[0]} / {sides[-1]} | peak memory, {sides[0]} / {sides[-1]} |"]
        lines += [f"|---|{'---|' * (len(sides) + 2)}"]
        for share, row in groupby(members, key=lambda row: row["settings"]["dead"]):
            found = {member["trainer"]: member for member in row}
            cells = [f"{found[side]['median_ms_outside_rollouts'] / full:.2f}" if side in found else "" for side in sides]
            first, last = found.get(sides[0]), found.get(sides[-1])
            ratios = [f"{first[name] / last[name]:.2f}" if first and last else "" for name in ("median_ms", "peak_mib")]
            lines.append(f"| {100 * share:.0f} % | {' | '.join([*cells, *ratios])} |")
        lines.append("")
    return lines


def _parts(row: Row) -> str:
    """The parts that take more than 1 % of the step, the longest first, and what no part names."""
    parts = {**row["parts_ms"], "other": row["median_ms"] - sum(v for name, v in row["parts_ms"].items() if name != "other")}
    shown = sorted((item for item in parts.items() if item[1] > 0.01 * row["median_ms"]), key=lambda item: -item[1])
    return ", ".join(f"{name} {value:.0f}" for name, value in shown)


def _ends(curves: list[list[float]]) -> str:
    count = max(1, min(ENDS, len(curves[0]) // 3))
    first, last = ([value for curve in curves for value in part(curve)] for part in (lambda c: c[:count], lambda c: c[-count:]))
    return f"{statistics.mean(first):.3f} -> {statistics.mean(last):.3f}"


def save_plots(rows: list[Row], folder: Path) -> None:
    """Rewards and entropies of every run of both trainers, a line of panels for each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = [(name, list(group)) for name, group in groupby((r for r in rows if r["status"] == "measured"), key=lambda row: row["case"])]
    if not cases:
        return
    figure, panels = plt.subplots(2, len(cases), figsize=(3.4 * len(cases), 5.2), squeeze=False, constrained_layout=True)
    for column, (name, group) in enumerate(cases):
        for line, quantity in enumerate(("reward", "entropy")):
            panel = panels[line][column]
            for member, color in zip(group, ("tab:green", "tab:blue", "tab:orange"), strict=False):
                for number, curve in enumerate(member[quantity]):
                    panel.plot(range(1, len(curve) + 1), curve, color=color, alpha=0.7, label=member["trainer"] if number == 0 else None)
            panel.set(title=name if line == 0 else "", ylabel=quantity if column == 0 else "", xlabel="step" if line else "")
            panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8)
    figure.savefig(folder / "rewards.png", dpi=100)
    plt.close(figure)
