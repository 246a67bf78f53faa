"""From the one configuration file to the runs of a matrix.

[settings.NAME]  a setting: a task, the size of its policy, and the configuration that its runs share; or a pretrained model and word
                 problems, as in study/real/real.toml
[methods.NAME]   the configuration that makes a method
[matrices.NAME]  which settings x hard shares x learning rates x methods x seeds are run, and for how many steps

A setting or method that is `like` an earlier one says only what it changes.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import tyro

from aer_train.config.method import with_method
from aer_train.config.parse import flags, parse
from aer_train.config.tree import TrainConfig
from study.real.setting import changed, check_setting, is_real, training_options

CONFIG = Path(__file__).parent / "study.toml"

Tree = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One training run."""

    setting: str
    """A key of [settings]: task and model size."""
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

    settings: dict[str, Tree]
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
            return cls(*(_completed(tree[name]) for name in ("settings", "methods", "matrices")))
        except (tomllib.TOMLDecodeError, KeyError) as error:
            raise ValueError(f"{path} must hold the tables settings, methods and matrices, got: {error}") from error

    def with_sources(self, model: str | None, problems: str | None) -> Study:
        """Return the study with another pretrained model, or other problems, in every setting that has them; None leaves the file's."""
        return replace(self, settings={name: changed(setting, model, problems) for name, setting in self.settings.items()})

    def matrix(self, name: str, **changes: Any) -> Matrix:
        """Return a matrix. The runs of a seed come together: an interrupted matrix has whole seeds.

        Args:
            changes: values of the file to replace, such as seeds or hard_shares; None leaves what the file says.

        Raises:
            ValueError - it, or a setting or method that it names, does not exist.
        """
        tree = _lookup(self.matrices, name, "matrix") | {key: value for key, value in changes.items() if value is not None}
        for kind, known in (("settings", self.settings), ("methods", self.methods)):
            for key in tree[kind]:
                _lookup(known, key, kind)
        for key in tree["settings"]:
            if is_real(self.settings[key]):
                check_setting(key, self.settings[key])
        combinations = product(tree["seeds"], tree["settings"], tree["hard_shares"], tree["lr_scales"], tree["methods"])
        jobs = [Job(setting, method, share, scale, seed) for seed, setting, share, scale, method in combinations]
        splits, limit = tuple(tree.get("splits", ("validation",))), tree.get("eval_limit")
        return Matrix(name, jobs, tree["steps"], tree.get("samples", 64), splits, limit, tuple(tree.get("probes", ())))

    def setting_of(self, job: Job) -> Tree:
        """Return the setting of a run; with policy_seed "run" every seed has a policy of its own: a run is then a policy."""
        setting = self.settings[job.setting]
        return setting | {"policy_seed": job.seed} if setting.get("policy_seed") == "run" else setting

    def train_config(self, matrix: Matrix, job: Job, out: Path, policy: Path) -> TrainConfig:
        """Return the configuration of a run whose folder is `out`, starting from `policy`."""
        setting = self.settings[job.setting]
        own: Tree = {
            "model": {"name": str(policy)},
            "run": {"out": str(out), "seed": job.seed, "steps": matrix.steps, "threads": 1, "save_samples_every": 0},
        }
        own |= training_options(policy, job.hard_share) if is_real(setting) else _task_options(setting["task"], job.hard_share)
        if matrix.probes:
            own["run"] |= {"save_every": math.gcd(*matrix.probes), "keep": matrix.steps}
        tree = merge({"run": {"device": "cpu"}}, setting.get("config", {}), self.methods[job.method], own)
        tree["optim"] = tree.get("optim", {}) | {"lr": job.lr_scale * setting["lr"]}
        start = with_method(TrainConfig(), tree.get("method", {}).get("kind"))
        return parse(tyro.conf.FlagConversionOff[TrainConfig], f"{job.folder}", flags(tree), start)


def _task_options(task: str, hard_share: float) -> Tree:
    return {"data": {"train": f"builtin:{task}:{hard_share:g}"}, "reward": {"kind": task, "workers": 1}}


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
