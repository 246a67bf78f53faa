"""`python -m benchmarks.trainer.cost --out DIR`: what AER costs over plain GRPO, a step of our trainer each, in turn."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.trainer import report
from benchmarks.trainer.__main__ import run
from benchmarks.trainer.cases import Case, Job, prepare

OURS = "benchmarks.trainer.ours"
ENTROPY = {"AER": "aer", "GRPO": "off"}

CASES = {
    "cpu": [
        Case("countdown", steps=60, excluded=10),
        Case("V=32000", steps=6, excluded=2, vocab_size=32_000, layers=2, max_new_tokens=64, lr=1e-3),
    ],
    "cuda": [
        Case("V=151936", steps=10, excluded=3, vocab_size=151_936, hidden_size=1024, layers=8, max_new_tokens=64, lr=3e-4),
    ],
}


def main(arguments: list[str] | None = None) -> int:
    """Run both methods in turn, each in a process of its own."""
    options = _parse(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options.out.mkdir(parents=True, exist_ok=True)
    here, rows = environment.describe(torch.device(device)), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(CASES[device]):
            folder = Path(scratch) / str(number)
            model, data = prepare(case, folder)
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in ENTROPY}
            for repeat in range(options.repeats):
                for name in list(ENTROPY)[:: 1 if repeat % 2 == 0 else -1]:
                    work, chosen = folder / f"{name}-{repeat}", replace(case, entropy=ENTROPY[name])
                    job = Job(chosen, model, data, work, work.with_suffix(".result"), device, 1, repeat)
                    found[name].append(run(OURS, job))
            rows += [here | report.row(case, name, runs) for name, runs in found.items()]
            (options.out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
            (options.out / "table.md").write_text(report.write(rows, "AER beside plain GRPO in the same trainer"))
    print((options.out / "table.md").read_text())
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer.cost", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
