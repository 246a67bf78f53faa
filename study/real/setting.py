"""What a setting with `problems` says: it trains a pretrained model on word problems, in place of a small policy on an embedded task."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from aer_train.tasks.prompts import TIERS
from study.real.warmup import WarmUp

Tree = dict[str, Any]

DECISIVE = ("model", "problems", "operations", "split", "warmup")
"""What decides a starting policy, beside the seed and how prompts are rendered."""

PARTS = ("warmup", "validation", "test")

PROBLEMS = "problems"
"""Folder with the problems of each part, in that of the policy."""


def is_real(setting: Tree) -> bool:
    """Return whether a setting is of this kind."""
    return "problems" in setting


def check_setting(name: str, setting: Tree) -> None:
    """Prove that a setting says what it must.

    Raises:
        ValueError - naming the key, the rule and the value.
    """
    for key in (*DECISIVE, "lr", "config"):
        if key not in setting:
            raise ValueError(f"settings.{name} must have {key}, got {', '.join(setting)}")
    few, many = [*setting["operations"], None, None][:2]
    if not (_whole(few) and _whole(many) and few < many):
        raise ValueError(f"settings.{name}.operations must be two rising whole numbers, got {setting['operations']}")
    for part in PARTS:
        counts = setting["split"].get(part)
        if not (isinstance(counts, list) and len(counts) == len(TIERS) and all(map(_whole, counts))):
            raise ValueError(f"settings.{name}.split.{part} must be how many easy and hard problems, each at least 1, got {counts}")
    WarmUp(**setting["warmup"])


def real_folder(cache: Path, setting: Tree) -> Path:
    """Where the starting policy of a setting is kept; another model, other problems or another warm-up have another folder."""
    decisive = {name: setting.get(name) for name in DECISIVE} | {"data": setting["config"]["data"]}
    digest = hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=4).hexdigest()
    name = Path(setting["model"].rpartition(":")[2]).name
    return cache / f"{name}-{digest}-seed{setting.get('policy_seed', 0)}"


def part_path(policy: Path, part: str) -> Path:
    """Where the problems of a part are."""
    return policy / PROBLEMS / f"{part}.jsonl"


def training_options(policy: Path, hard_share: float) -> Tree:
    """Return the options of a run that follow from its policy and share of hard problems."""
    return {"data": {"train": str(part_path(policy, f"train-hard{hard_share:g}")), "tier_column": "tier"}, "reward": {"workers": 1}}


def changed(setting: Tree, model: str | None, problems: str | None) -> Tree:
    """Return the setting with another model, or with the problems of one file or hub dataset in place of its own.

    Settings of embedded tasks stay as they are.
    """
    if not is_real(setting):
        return setting
    new: Tree = {} if model is None else {"model": model}
    return setting | new | ({} if problems is None else {"problems": [{"source": problems}]})


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
