"""The warm-started policies: made once for each setting, then kept in a cache folder."""

from __future__ import annotations

import json
from pathlib import Path

from aer_train.model import resolve_device
from aer_train.record import write_atomic
from aer_train.tasks import warmup
from study.config import Tree

REPORT = "warmup.json"
"""In a policy's folder: what it does at the start."""

SAMPLES = 64
"""Responses per validation prompt for that, as many as the matrices take at the end."""


def policy_folder(cache: Path, setting: Tree) -> Path:
    """Where the policy of a setting is kept."""
    rare = setting.get("rare", warmup.RARE)
    return cache / f"{setting['task']}-{setting['size']}-rare{rare:g}-seed{setting.get('policy_seed', 0)}"


def prepare(cache: Path, setting: Tree) -> Path:
    """Make the policy of a setting unless it is there, and return its folder; `REPORT` in it holds its numbers on validation."""
    folder = policy_folder(cache, setting)
    steps = setting.get("warmup_steps")
    device = str(resolve_device(setting.get("settings", {}).get("run", {}).get("device", "cpu")))
    if not folder.exists():
        seed, rare = setting.get("policy_seed", 0), setting.get("rare", warmup.RARE)
        warmup.warm_up(folder, setting["task"], setting["size"], seed, None if steps is None else tuple(steps), rare, device)
    if not (folder / REPORT).exists():
        write_atomic(folder / REPORT, json.dumps(warmup.report(folder, setting["task"], samples=SAMPLES, device=device), indent=2))
    return folder
