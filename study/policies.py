"""The warm-started policies, of embedded tasks and of real models: made once for each setting, then kept in a cache folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from aer_train.model import resolve_device
from aer_train.run.files import write_atomic
from aer_train.tasks import warmup
from study.config import Tree
from study.real.policy import prepare_real
from study.real.setting import is_real, real_folder
from study.vocabulary import HABIT_STEPS, add_words

REPORT = "warmup.json"
"""In a policy's folder: what it does at the start."""

SAMPLES = 64
"""Responses per validation prompt for that, as many as the matrices take at the end."""


def policy_folder(cache: Path, setting: Tree) -> Path:
    """Where the policy of a setting is kept."""
    if is_real(setting):
        return real_folder(cache, setting)
    rare = setting.get("rare", warmup.RARE)
    words = f"-words{setting['words']}" if "words" in setting else ""
    return cache / f"{setting['task']}-{setting['size']}-rare{rare:g}{words}-seed{setting.get('policy_seed', 0)}"


def stages(cache: Path, settings: Sequence[Tree]) -> list[dict[Path, Tree]]:
    """Return what can be prepared side by side, by folder, and each only once: first the policies that others add words to."""
    first, everything = ({policy_folder(cache, each): each for each in stage} for stage in (map(_without_words, settings), settings))
    return [first, {folder: setting for folder, setting in everything.items() if folder not in first}]


def prepare(cache: Path, setting: Tree) -> Path:
    """Make the policy of a setting unless it is there, and return its folder; `REPORT` in it holds its numbers on validation."""
    folder = policy_folder(cache, setting)
    if is_real(setting):
        prepare_real(folder, setting, REPORT)
        return folder
    steps = setting.get("warmup_steps")
    device = str(resolve_device(setting.get("config", {}).get("run", {}).get("device", "cpu")))
    seed, rare = setting.get("policy_seed", 0), setting.get("rare", warmup.RARE)
    if not folder.exists() and "words" in setting:
        first = prepare(cache, _without_words(setting))
        add_words(first, folder, setting["task"], setting["words"], seed, rare, setting.get("words_steps", HABIT_STEPS))
    elif not folder.exists():
        warmup.warm_up(folder, setting["task"], setting["size"], seed, None if steps is None else tuple(steps), rare, device)
    if not (folder / REPORT).exists():
        write_atomic(folder / REPORT, json.dumps(warmup.report(folder, setting["task"], samples=SAMPLES, device=device), indent=2))
    return folder


def _without_words(setting: Tree) -> Tree:
    return {name: value for name, value in setting.items() if name != "words"}
