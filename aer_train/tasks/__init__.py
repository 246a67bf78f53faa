"""Embedded tasks: verifiable, offline, with difficulty tiers. `TASKS` has them by name; `aer_train.tasks.prompts` says what a task is."""

from __future__ import annotations

from aer_train.tasks.chains import Chains
from aer_train.tasks.countdown import Countdown
from aer_train.tasks.mixed import Mixed
from aer_train.tasks.prompts import Task, make_prompts
from aer_train.tasks.worked import Worked
from aer_train.types import Prompt

TASKS: dict[str, Task] = {task.name: task for task in (Countdown(3), Countdown(4), Worked(), Mixed(), Chains())}

PREFIX = "builtin:"


def task(name: str) -> Task:
    """Return an embedded task.

    Raises:
        ValueError - there is none of this name.
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]


def check_rule(kind: str, source: str) -> None:
    """Check that a reward can judge the prompts of a source: by another task's rule, or that of mathematics, all answers are wrong.

    Args:
        kind: `reward.kind`.
        source: where prompts come from; what is not embedded is not looked at.
    Raises:
        ValueError - the source is an embedded task, and `kind` neither its rule nor a function of the user's.
    """
    name = source.removeprefix(PREFIX).partition(":")[0]
    if source.startswith(PREFIX) and kind != name and kind in ("math", *TASKS):
        raise ValueError(f"reward.kind must be {name} for {source}, or a function of yours, got {kind}")


def builtin_prompts(source: str, split: str, count: int | None, seed: int) -> list[Prompt]:
    """Prompts of `builtin:NAME`, or of `builtin:NAME:SHARE` with that share of hard ones among the training prompts.

    Raises:
        ValueError - the source names no task, or the share is not in [0, 1].
    """
    name, _, share = source.removeprefix(PREFIX).partition(":")
    if not share:
        return make_prompts(task(name), split, count, seed)
    try:
        hard_share = float(share)
    except ValueError:
        raise ValueError(f"share of hard prompts must be a number, got {share!r} in {source}") from None
    return make_prompts(task(name), split, count, seed, hard_share)
