"""`python -m benchmarks.trainer --out DIR`: ours and TRL's trainer in turn, or AER and plain GRPO, each run in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import environment
from benchmarks.trainer import report
from benchmarks.trainer.cases import PROFILES, Case, Job, dead, prepare, shared

OURS, TRL = "benchmarks.trainer.ours", "benchmarks.trainer.trl"
Sides = dict[str, tuple[str, dict[str, Any]]]
"""Name: module that runs a job, and what it changes in the case."""
TRAINERS: Sides = {"aer_train": (OURS, {}), "TRL": (TRL, {})}
METHODS: Sides = {"AER": (OURS, {"entropy": "aer"}), "GRPO": (OURS, {})}
WITH_DEAD: Sides = {"aer_train": (OURS, {}), "aer_train, skip": (OURS, {"dead_samples": "skip"}), "TRL": (TRL, {})}
WITH_PROMPTS: Sides = {"aer_train": (OURS, {}), "aer_train, each alone": (OURS, {"share_prompts": False}), "TRL": (TRL, {})}
SAID = 1500
"""Characters of a failed process's last words that are kept."""


def main(arguments: list[str] | None = None) -> int:
    """Run the cases. Rows are written after every case, so that a run that dies leaves what it has."""
    options = _parse(arguments)
    sides, title, cases = _chosen(options)
    cases = [c for c in cases if not options.only or any(part in c.name for part in options.only)]
    if not cases:
        raise SystemExit(f"--only must match a case, got {options.only}")
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    here, rows = environment.describe(torch.device(device)), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=len(cases) * options.repeats * len(sides), unit="run") as bar:
        for number, case in enumerate(cases):
            folder = Path(scratch) / str(number)
            jobs = _jobs(case, sides, folder, options, device)
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
            for trainer, job in jobs:
                bar.set_description(f"{case.name}: {trainer}")
                found[trainer].append(_run(sides[trainer][0], job))
                bar.update()
            rows += [here | report.row(replace(case, **sides[trainer][1]), trainer, runs) for trainer, runs in found.items()]
            (options.out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
            (options.out / "table.md").write_text(report.write(rows, title))
    report.save_plots(rows, options.out)
    print((options.out / "table.md").read_text())
    return 0


def _chosen(options: argparse.Namespace) -> tuple[Sides, str, list[Case]]:
    if options.dead:
        return WITH_DEAD, report.DEAD_SAMPLES, dead()
    if options.shared:
        return WITH_PROMPTS, report.SHARED_PROMPTS, shared()
    cases = PROFILES[options.profile]()
    if options.cost:
        return METHODS, report.COST, [c for c in cases if c.entropy == "off"]
    return TRAINERS, report.BESIDE_TRL, cases


def _jobs(case: Case, sides: Sides, folder: Path, options: argparse.Namespace, device: str) -> Iterable[tuple[str, Job]]:
    """The runs of a case: every side once a round, each round in the opposite order of the one before."""
    model, data = prepare(case, folder)
    for repeat in range(options.repeats):
        for trainer in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
            work = folder / f"{trainer}-{repeat}"
            chosen, seed = replace(case, **sides[trainer][1]), options.seed + repeat
            yield trainer, Job(chosen, model, data, work, work.with_suffix(".result"), device, options.threads, seed)


def _run(module: str, job: Job) -> dict[str, Any]:
    """Run one job in a process of its own; a peer that fails says why in its row."""
    path = job.result.with_suffix(".job")
    job.write(path)
    environ = os.environ | {"OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, "-m", module, str(path)], capture_output=True, text=True, env=environ)
    if done.returncode == 0:
        return json.loads(job.result.read_text())
    if module == OURS:
        raise SystemExit(f"aer_train failed:\n{done.stderr[-SAID:]}")
    return {"error": done.stderr.strip()[-SAID:]}


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json, table.md and rewards.png")
    parser.add_argument("--profile", choices=PROFILES, default="cuda" if torch.cuda.is_available() else "cpu", help="default: what is here")
    parser.add_argument("--only", nargs="*", help="cases whose name contains one of these texts")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--dead", action="store_true", help="steps in which 0 to 90 percent of the samples teach nothing instead")
    other.add_argument("--shared", action="store_true", help="long prompts instead, read once a group or for each response")
    other.add_argument(
        "--cost", action="store_true", help="AER beside plain GRPO in our trainer instead: the cases without an entropy term"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each trainer a case, seeds SEED, SEED + 1, ...")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch in either trainer")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
