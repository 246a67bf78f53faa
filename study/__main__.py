"""`python -m study MATRIX --out DIR` runs what is missing of a matrix of study.toml, and writes DIR/records.parquet, tables and figures.

`python -m study page` writes the tables and figures of the pages in docs from study/results/MATRIX.parquet and MATRIX.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from study.conditions import CONDITIONS
from study.config import CONFIG, Matrix, Study
from study.figures import write_figures
from study.jobs import run_matrix
from study.lock import locked
from study.page import write_page
from study.reach import reach_table
from study.real.results import GREEDY, real_table, save_training
from study.real.setting import is_real
from study.records import read_records, write_records
from study.tables import control_table, outcome_table

CHANGES = {"seeds": int, "settings": str, "methods": str, "hard_shares": float, "lr_scales": float}
"""What the command line can change in a matrix."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code: 0, 1 when a run failed, 2 for a user error, 130 when interrupted."""
    given = _parse(arguments)
    try:
        if given.matrix == "page":
            write_page()
            return 0
        return _run(given)
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from what {given.out} holds", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(given: argparse.Namespace) -> int:
    study = Study.read(given.config).with_sources(given.model, given.problems)
    matrix = study.matrix(given.matrix, **{name: getattr(given, name) for name in CHANGES})
    if given.out is None:
        raise ValueError("--out must name a folder for the runs, got none")
    with locked(given.out):
        return _finish(study, matrix, given)


def _finish(study: Study, matrix: Matrix, given: argparse.Namespace) -> int:
    failed = run_matrix(study, matrix, given.out, given.cache, given.workers)
    records = read_records(given.out)
    write_records(records, given.out / "records.parquet")
    tables = {"control.md": control_table(records)} | {f"{split}.md": outcome_table(records, split) for split in matrix.splits}
    if matrix.probes:
        tables["reach.md"] = reach_table(records)
    real = {"test", f"test{GREEDY}"} <= set(matrix.splits) and all(is_real(study.setting_of(job)) for job in matrix.jobs)
    if real:
        policies = json.loads((given.out / CONDITIONS).read_text(encoding="utf-8"))["policies"]
        tables[f"{matrix.name}.md"] = real_table(records, policies)
    for name, text in tables.items():
        (given.out / name).write_text(text, encoding="utf-8")
        print(f"\n{name}\n{text}")
    write_figures(records, given.out, matrix.name)
    if real:
        save_training(records, given.out / f"{matrix.name}_training.png")
    return 1 if failed else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m study", description=__doc__)
    parser.add_argument("matrix", help="a table of [matrices] in the configuration file, or page")
    parser.add_argument("--out", type=Path, help="folder for the runs; finished ones are kept, cut-off ones go on")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--model", help="for settings with a pretrained model: a hub id, a folder, or package:NAME with a GGUF file")
    parser.add_argument("--problems", help="for the same settings: a file or hub dataset of word problems, in place of their own")
    parser.add_argument("--cache", type=Path, default=Path("runs/policies"), help="folder of the warm-started policies")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="runs side by side, one thread each")
    for name, kind in CHANGES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, nargs="+", help="instead of those of the file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
