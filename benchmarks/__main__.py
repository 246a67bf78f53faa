"""`python -m benchmarks --profile cpu --out DIR`: check, measure, write results.json, table.md and plots."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import environment, gate, plots, table
from benchmarks.measure import check_memory, clear, outputs_mib, peak_mib, time_in_turn
from benchmarks.profiles import MINUTES, PROFILES
from benchmarks.providers import PROVIDERS, Inapplicable, Unavailable, prepare
from benchmarks.workloads import Case, Workload, make_case, median_entropy


def main(arguments: list[str] | None = None) -> int:
    """Run a profile. Rows are written after every workload, so that a run that dies leaves what it has."""
    options = _parse(arguments)
    device = torch.device("cuda" if options.profile == "gpu" else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("the gpu profile needs a CUDA GPU: none is visible")
    workloads = [w for w in PROFILES[options.profile]() if not options.only or any(part in w.label for part in options.only)]
    if not workloads:
        raise SystemExit(f"--only must match a workload, got {options.only}")
    options.out.mkdir(parents=True, exist_ok=True)
    minutes = MINUTES[options.profile] if options.minutes is None else options.minutes
    here, rows, end = environment.describe(device), [], time.monotonic() + 60 * minutes
    bar = tqdm(workloads, unit="workload")
    for workload in bar:
        bar.set_description(workload.label)
        if time.monotonic() > end:
            tqdm.write(f"left out, as {minutes:g} minutes are over: {workload.label}")
            continue
        measured = replace(workload, rounds=min(workload.rounds, options.rounds))
        rows += [here | row for row in measure(measured, device, options.seed)]
        (options.out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.out / "table.md").write_text(table.write(rows))
    plots.save_plots(rows, options.out)
    print(table.targets(rows) or "no target belongs to this profile")
    print(f"\n{len(rows)} rows in {options.out / 'results.json'}, read {options.out / 'table.md'}")
    return 0


def measure(workload: Workload, device: torch.device, seed: int) -> list[dict[str, Any]]:
    """Rows of all providers at one workload, measured in turn."""
    case = make_case(workload, device, seed)
    shared = _columns(workload, case)
    rows, runs = {}, {}
    for provider in PROVIDERS:
        if (workload.only and provider.name not in workload.only) or provider.name in workload.without:
            continue
        row = rows[provider.name] = shared | {"provider": provider.name, "differs": provider.differs}
        try:
            row["version"] = provider.version()
            check_memory(provider, case)
            row["errors"] = gate.check(provider, workload, device)
            row["peak_mib"] = peak_mib(provider, case)
            runs[provider.name] = prepare(provider, case)
        except Inapplicable as reason:
            row["status"] = f"does not apply: {reason}"
        except (Unavailable, gate.GateError) as reason:
            row["status"] = f"{'failed the check' if isinstance(reason, gate.GateError) else 'not measured'}: {reason}"
        except Exception as error:  # a peer may fail in any way; ours may not
            if provider.package == "aer-rl":
                raise
            row["status"] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        clear(case)
    for name, timing in time_in_turn(runs, workload.rounds, device).items():
        tflops = workload.flops / timing.median_ms / 1e9
        rows[name] |= {"status": "measured", **timing._asdict(), "tflops": tflops, "outputs_mib": outputs_mib(case)}
    _add_ratios(rows)
    return list(rows.values())


def _columns(workload: Workload, case: Case) -> dict[str, Any]:
    return {
        "workload": workload.label,
        "kind": workload.kind,
        "sweep": workload.sweep,
        "N": workload.num_tokens,
        "V": workload.vocab_size,
        "D": workload.hidden_size,
        "dtype": str(workload.dtype).removeprefix("torch."),
        "useful_share": workload.useful,
        "median_entropy": round(median_entropy(case), 3),
    }


def _add_ratios(rows: dict[str, dict[str, Any]]) -> None:
    for row in rows.values():
        for name, other in (("ratio_to_eager", "eager"), ("ratio_to_products", "bare products")):
            if "median_ms" in row and "median_ms" in rows.get(other, {}):
                row[name] = row["median_ms"] / rows[other]["median_ms"]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--profile", choices=PROFILES, required=True, help="cpu: minutes on two cores; gpu: eight minutes; smoke: one")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json, table.md and the plots")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="workloads whose label contains one of these")
    parser.add_argument("--minutes", type=float, help="start no workload after this time (default: 7 for gpu, 60 otherwise)")
    parser.add_argument("--rounds", type=int, default=sys.maxsize, help="at most so many rounds a workload")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
