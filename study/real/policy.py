"""The starting policy of a real model: problems are split, the model is warmed up, and what it could do before and after is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tyro

from aer_train.config.parse import flags, parse
from aer_train.config.tree import TrainConfig
from aer_train.data.prompts import load_prompts
from aer_train.model import Policy, load_policy, resolve_device
from aer_train.run.files import write_atomic
from aer_train.tasks.prompts import TIERS
from aer_train.types import Prompt
from study.config import Tree, merge
from study.evaluate import count_right, pass_at
from study.real.model import model_source, whole
from study.real.problems import Problem, read_problems, rows_of, split_problems, with_share
from study.real.setting import PROBLEMS, part_path
from study.real.warmup import WarmUp, warm_up

SAMPLES = 16
"""Responses to each problem for the report, unless the setting has `start_samples`."""


def prepare_real(folder: Path, setting: Tree, report: str) -> None:
    """Make the starting policy of a setting in `folder` unless it is there, with its problems and the file `report` of its numbers.

    Raises:
        ValueError - model or problems cannot be had, or are too few.
    """
    if folder.exists():
        return
    config, seed, samples = _config(setting), setting.get("policy_seed", 0), setting.get("start_samples", SAMPLES)
    parts = split_problems(read_problems(setting["problems"], tuple(setting["operations"])), setting["split"], seed)
    source = model_source(setting["model"], folder.parent)
    policy = load_policy(replace(config.model, name=source), resolve_device(config.run.device))
    with whole(folder) as new:
        (new / PROBLEMS).mkdir()
        for part, problems in parts.items():
            write_problems(problems, part_path(new, part))
        prompts = {part: _prompts(config, part_path(new, part), policy) for part in parts}
        numbers = _numbers(policy, config, prompts["validation"], samples, "{} before")
        losses = warm_up(policy, prompts["warmup"], WarmUp(**setting["warmup"]), seed)
        numbers |= {"first loss": losses[0], "last loss": losses[-1]}
        numbers |= _numbers(policy, config, prompts["validation"], samples, "{}")
        numbers |= _numbers(policy, config, prompts["test"], samples, "test {}")
        policy.model.save_pretrained(new)
        policy.generation_config.save_pretrained(new)
        policy.tokenizer.save_pretrained(new)
        write_atomic(new / report, json.dumps(numbers, indent=2))


def write_training(file: Path, hard_share: float) -> None:
    """Write the problems of a run with this share of hard ones, unless they are there; those of the split are beside them."""
    if not file.exists():
        rows = file.with_name("train.jsonl").read_text(encoding="utf-8").splitlines()
        write_problems(with_share([Problem(**json.loads(row)) for row in rows], hard_share), file)


def write_problems(problems: Sequence[Problem], file: Path) -> None:
    """Write problems as JSON lines."""
    write_atomic(file, "".join(json.dumps(row) + "\n" for row in rows_of(problems)))


def _numbers(policy: Policy, config: TrainConfig, prompts: list[Prompt], samples: int, name: str) -> dict[str, float]:
    """Accuracy, pass@k and greedy accuracy by tier."""
    drawn = count_right(policy, config, prompts, samples, 1.0, (config.run.seed, "start"))
    greedy = count_right(policy, config, prompts, 1, 0.0, (config.run.seed, "start"))
    found: dict[str, float] = {}
    for tier in TIERS:
        found[name.format(f"{tier} accuracy")] = pass_at(drawn[tier], samples, 1)
        found[name.format(f"{tier} pass@{samples}")] = pass_at(drawn[tier], samples, samples)
        found[name.format(f"{tier} greedy")] = pass_at(greedy[tier], 1, 1)
    return found


def _prompts(config: TrainConfig, file: Path, policy: Policy) -> list[Prompt]:
    return load_prompts(config.data, policy.tokenizer, str(file), "train").prompts


def _config(setting: Tree) -> TrainConfig:
    """What the runs of a setting have in common."""
    tree = merge({"data": {"tier_column": "tier"}, "run": {"device": "cpu"}}, setting["config"])
    return parse(tyro.conf.FlagConversionOff[TrainConfig], "setting", flags(tree), TrainConfig())
