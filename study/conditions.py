"""Under which conditions a matrix was run: hardware, versions, commit, and what its policies could do at the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from aer_train.record import write_atomic
from benchmarks import environment
from study.config import Matrix, Study
from study.policies import REPORT, policy_folder

CONDITIONS = "conditions.json"


def write_conditions(study: Study, matrix: Matrix, cache: Path, out: Path) -> None:
    """Write out/CONDITIONS, before the first run, when the policies are made: a matrix that goes on keeps what it began with.

    Raises:
        ValueError - `out` was begun from a policy that does something else at the start.
    """
    names = dict.fromkeys(job.setting for job in matrix.jobs)
    policies = {name: json.loads((policy_folder(cache, study.tasks[name]) / REPORT).read_text(encoding="utf-8")) for name in names}
    if (out / CONDITIONS).exists():
        _check_policies(json.loads((out / CONDITIONS).read_text(encoding="utf-8"))["policies"], policies, out)
        return
    here = environment.describe(torch.device("cuda" if torch.cuda.is_available() else "cpu")) | {"threads": 1}
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / CONDITIONS, json.dumps({"environment": here, "policies": policies}, indent=1))


def _check_policies(begun: dict[str, Any], policies: dict[str, Any], out: Path) -> None:
    """Another processor rounds otherwise and so makes another policy: runs from both would be paired with each other."""
    for name, policy in policies.items():
        if begun.get(name, policy) != policy:
            raise ValueError(f"--cache must hold the policy of {name} that the runs in {out} began from, got one with other numbers")


def start_table(conditions: dict[str, Any]) -> str:
    """What the policies could do at the start, on validation: one row a setting."""
    columns = list(dict.fromkeys(name for report in conditions["policies"].values() for name in report))
    lines = [f"| policy at the start | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for setting, report in conditions["policies"].items():
        lines.append(f"| {setting} | {' | '.join(f'{report[name]:.4f}' if name in report else '' for name in columns)} |")
    return "\n".join(lines) + "\n"
