"""Under which conditions a matrix was run: hardware, versions, commit, and what its policies could do at the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from aer_train.run.files import write_atomic
from benchmarks import environment
from study.config import Job, Matrix, Study
from study.policies import REPORT, policy_folder

CONDITIONS = "conditions.json"


def write_conditions(study: Study, matrix: Matrix, cache: Path, out: Path) -> None:
    """Write out/CONDITIONS, before the first run, when the policies are made: a matrix that goes on keeps what it began with, and adds the
    policies of settings that are new.

    Raises:
        ValueError - `out` was begun from a policy that does something else at the start.
    """
    folders = {_name(study, job): policy_folder(cache, study.setting_of(job)) for job in matrix.jobs}
    policies = {name: json.loads((folder / REPORT).read_text(encoding="utf-8")) for name, folder in folders.items()}
    if (out / CONDITIONS).exists():
        conditions = json.loads((out / CONDITIONS).read_text(encoding="utf-8"))
        _check_policies(conditions["policies"], policies, out)
    else:
        here = environment.describe(torch.device("cuda" if torch.cuda.is_available() else "cpu")) | {"threads": 1}
        conditions = {"environment": here, "policies": {}}
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / CONDITIONS, json.dumps(conditions | {"policies": conditions["policies"] | policies}, indent=1))


def _name(study: Study, job: Job) -> str:
    """Return the name of a run's policy: that of its setting, and its seed where every seed has one of its own."""
    own = study.setting_of(job) is not study.settings[job.setting]
    return f"{job.setting}, seed {job.seed}" if own else job.setting


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
