"""Rows as Markdown, and the targets against what was measured."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

Row = dict[str, Any]
RL_PEERS = ("verl kernel", "verl torch", "Liger scaled cross-entropy", "TRL")
"""Those with an entropy gradient."""


def write(rows: list[Row]) -> str:
    """The whole table: where it was measured, the targets, every workload with every provider, losses included."""
    if not rows:
        return ""
    here = rows[0]
    threads = f"{here['threads']} threads, " if here["driver"] is None else f"driver {here['driver']}, "
    lines = [
        "# Benchmark results",
        "",
        f"{here['hardware']}, {threads}torch {here['torch']}, triton {here['triton']}, Python {here['python']}, "
        f"commit {here['commit']}, {here['date']}.",
        "",
        "Times are medians of rounds in which every provider runs once, in turn; ratios below 1 are faster. Memory is the peak beyond the",
        "inputs; gradients are part of it and listed beside it. Errors are against float64 on a small case. More: benchmarks/README.md.",
        "",
    ]
    stated = targets(rows)
    lines += ["## Targets", "", stated, ""] if stated else []
    for label, group in groupby(rows, key=lambda row: (row["sweep"], row["workload"])):
        members = list(group)
        lines += [f"## {label[1]}{'' if label[0] == 'main' else f' ({label[0]})'}", ""]
        lines += [f"Median entropy {members[0]['median_entropy']} nats.", "", *_table(members), ""]
    return "\n".join(lines)


COLUMNS = (
    "provider",
    "version",
    "ms",
    "p20 - p80",
    "x eager",
    "x products",
    "TFLOP/s",
    "peak MiB",
    "gradients MiB",
    "largest error",
    "differs",
)


def _table(rows: list[Row]) -> list[str]:
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for row in sorted((r for r in rows if "median_ms" in r), key=lambda r: r["median_ms"]):
        errors = max(row["errors"].values()) if row.get("errors") else None
        cells = [
            row["provider"],
            row["version"],
            f"{row['median_ms']:.1f}",
            f"{row['p20_ms']:.1f} - {row['p80_ms']:.1f}",
            _number(row.get("ratio_to_eager")),
            _number(row.get("ratio_to_products")),
            f"{row['tflops']:.2f}" if row["tflops"] else "",
            f"{row['peak_mib']:.0f}",
            f"{row['outputs_mib']:.0f}",
            "" if errors is None else f"{errors:.1e}",
            row["differs"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for row in rows:
        if "median_ms" not in row and not _inapplicable(row):
            lines.append(f"| {row['provider']} | {row.get('version', '')} | {row['status']} |{' |' * (len(COLUMNS) - 3)}")
    absent = [f"{row['provider']} ({row['status'].removeprefix('does not apply: ')})" for row in rows if _inapplicable(row)]
    return [*lines, "", f"Not for this work: {', '.join(absent)}."] if absent else lines


def _inapplicable(row: Row) -> bool:
    return row["status"].startswith("does not apply")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def targets(rows: list[Row]) -> str:
    """Target, measured, met; empty if none of the rows belongs to one."""
    lines = []
    for text, bound, value in _stated(rows):
        met = "not measured" if value is None else "yes" if _holds(bound, value) else "no"
        lines.append(f"| {text} | {bound} | {'' if value is None else f'{value:.2f}'} | {met} |")
    return "\n".join(["| target | bound | measured | met |", "|---|---|---|---|", *lines]) if lines else ""


def _holds(bound: str, value: float) -> bool:
    sign, number = bound.split()
    return value <= float(number) if sign == "<=" else value >= float(number)


def _stated(rows: list[Row]) -> list[tuple[str, str, float | None]]:
    """The targets whose shape is among the rows."""
    found: list[tuple[str, str, float | None]] = []

    def at(kind: str, n: int, v: int, d: int) -> Callable[[str], Row]:
        members = [r for r in rows if (r["kind"], r["N"], r["V"], r["D"], r["sweep"]) == (kind, n, v, d, "main")]
        return lambda name: next((r for r in members if r["provider"] == name and "median_ms" in r), {})

    cpu = at("policy", 4096, 32_000, 512)
    if cpu("aer_kernels"):
        ours, eager = cpu("aer_kernels"), cpu("eager")
        found += [
            ("CPU policy loss, time / eager", "<= 0.55", ours.get("ratio_to_eager")),
            ("CPU policy loss, time / bare products", "<= 1.2", ours.get("ratio_to_products")),
            ("CPU policy loss, peak memory / eager", "<= 0.12", ours["peak_mib"] / eager["peak_mib"] if eager else None),
        ]
    shape = (8192, 151_936, 4096)
    policy, half, logprobs, score = (at(k, *shape) for k in ("policy", "policy_half", "logprobs", "score"))
    for text, kind, workspace in (("(a) policy loss", policy, 2.6), ("(b) log-probs", logprobs, 0.5), ("score", score, 0.064)):
        ours = kind("aer_kernels")
        if ours:
            found.append((f"{text}, time / bare products", "<= 1.12", ours.get("ratio_to_products")))
            beyond = max(ours["peak_mib"] - ours["outputs_mib"], 0.0) * 2**20 / 1e9
            found.append((f"{text}, GB beyond outputs", f"<= {workspace}", beyond))
    if half("aer_kernels") and policy("aer_kernels"):
        found.append(("(a) half of the rows idle / dense", "<= 0.6", half("aer_kernels")["median_ms"] / policy("aer_kernels")["median_ms"]))
    peers = [policy(name)["median_ms"] for name in RL_PEERS if policy(name)]
    if policy("aer_kernels"):
        ratio = min(peers) / policy("aer_kernels")["median_ms"] if peers else None
        found.append(("best RL peer with entropy gradients / ours", ">= 1.3", ratio))
        plain = at("policy_no_entropy", *shape)
        liger, ours = plain("Liger fused linear GRPO"), plain("aer_kernels")
        found.append(("Liger GRPO / ours", ">= 4", liger["median_ms"] / ours["median_ms"] if liger and ours else None))
    return found
