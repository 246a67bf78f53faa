"""From the one configuration file to the runs of a matrix.

[tasks.NAME]     task, size of its policy, and the settings of its runs
[methods.NAME]   the settings that make a method
[matrices.NAME]  which tasks x hard shares x learning rates x methods x seeds are run, and for how many steps

A task or method that is `like` an earlier one says only what it changes.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import tyro

from aer_train.config import TrainConfig
from aer_train.settings import flags, parse

CONFIG = Path(__file__).parent / "study.toml"

Tree = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One training run."""

    setting: str
    """A key of [tasks]: task and model size."""
    method: str
    """A key of [methods]."""
    hard_share: float
    """Share of hard prompts among the training prompts."""
    lr_scale: float
    """Factor on the learning rate of the setting."""
    seed: int

    @property
    def folder(self) -> Path:
        """Where its records are, below the folder of the matrix."""
        return Path(f"{self.setting}-hard{self.hard_share:g}-lr{self.lr_scale:g}") / self.method / f"seed{self.seed}"


@dataclass(frozen=True)
class Matrix:
    """A set of runs that are compared with each other."""

    name: str
    jobs: list[Job]
    steps: int
    samples: int
    """Responses per evaluation prompt."""
    splits: tuple[str, ...]
    """Where the last policy is evaluated."""
    eval_limit: int | None
    """Evaluation prompts; None is all."""
    probes: tuple[int, ...] = ()
    """Steps whose checkpoints are kept until it is measured how far a bonus reaches there (`study.reach`)."""


@dataclass(frozen=True)
class Study:
    """The configuration file."""

    tasks: dict[str, Tree]
    methods: dict[str, Tree]
    matrices: dict[str, Tree]

    @classmethod
    def read(cls, path: Path = CONFIG) -> Study:
        """Read the file.

        Raises:
            ValueError - it is missing, no TOML, lacks a table, or one is like none before it.
        """
        if not path.is_file():
            raise ValueError(f"--config must name an existing file, got {path}")
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
            return cls(*(_completed(tree[name]) for name in ("tasks", "methods", "matrices")))
        except (tomllib.TOMLDecodeError, KeyError) as error:
            raise ValueError(f"{path} must hold the tables tasks, methods and matrices, got: {error}") from error

    def matrix(self, name: str, **changes: Any) -> Matrix:
        """Return a matrix. The runs of a seed come together: an interrupted matrix has whole seeds.

        Args:
            changes: values of the file to replace, such as seeds or hard_shares; None leaves what the file says.

        Raises:
            ValueError - it, or a task or method that it names, does not exist.
        """
        tree = _lookup(self.matrices, name, "matrix") | {key: value for key, value in changes.items() if value is not None}
        for kind, known in (("tasks", self.tasks), ("methods", self.methods)):
            for key in tree[kind]:
                _lookup(known, key, kind)
        places = product(tree["seeds"], tree["tasks"], tree["hard_shares"], tree["lr_scales"], tree["methods"])
        jobs = [Job(setting, method, share, scale, seed) for seed, setting, share, scale, method in places]
        splits, limit = tuple(tree.get("splits", ("validation",))), tree.get("eval_limit")
        return Matrix(name, jobs, tree["steps"], tree.get("samples", 64), splits, limit, tuple(tree.get("probes", ())))

    def train_config(self, matrix: Matrix, job: Job, out: Path, policy: Path) -> TrainConfig:
        """Return the configuration of a run whose folder is `out`, starting from `policy`."""
        setting = self.tasks[job.setting]
        task = setting["task"]
        own: Tree = {
            "model": {"name": str(policy)},
            "data": {"train": f"builtin:{task}:{job.hard_share:g}"},
            "reward": {"kind": task, "workers": 1},
            "run": {"out": str(out), "seed": job.seed, "steps": matrix.steps, "threads": 1, "save_samples_every": 0},
        }
        if matrix.probes:
            own["run"] |= {"save_every": math.gcd(*matrix.probes), "keep": matrix.steps}
        tree = merge({"run": {"device": "cpu"}}, setting.get("settings", {}), self.methods[job.method], own)
        tree["optim"] = tree.get("optim", {}) | {"lr": job.lr_scale * setting["lr"]}
        return parse(tyro.conf.FlagConversionOff[TrainConfig], f"{job.folder}", flags(tree), TrainConfig())


def merge(*trees: Tree) -> Tree:
    """Return one tree; what comes later wins."""
    merged: Tree = {}
    for tree in trees:
        for key, value in tree.items():
            merged[key] = merge(merged.get(key, {}), value) if isinstance(value, dict) else value
    return merged


def _completed(tables: dict[str, Tree]) -> dict[str, Tree]:
    """Return the tables with what those that they are `like` give them; a table comes after the one that it names."""
    found: dict[str, Tree] = {}
    for name, table in tables.items():
        own = {key: value for key, value in table.items() if key != "like"}
        found[name] = merge(_lookup(found, table["like"], "like") if "like" in table else {}, own)
    return found


def _lookup(known: dict[str, Tree], name: str, kind: str) -> Tree:
    if name not in known:
        raise ValueError(f"{kind} must name one of {', '.join(known)}, got {name!r}")
    return known[name]
