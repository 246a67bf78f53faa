"""What an embedded task is, and how its problems become prompts.

The problems of a task fall into train, validation and test by hash, so that no problem is in two of them. Warm-up and training draw from
train; constants may be chosen on validation; test is for the final numbers. In every task each problem can be solved: a perfect policy
reaches 1.0 in every tier.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any, Protocol

from aer_train.types import Prompt

TIERS = ("easy", "hard")
"""easy: a short, common strategy is enough. hard: only a strategy that the warm-started policy rarely uses; in chains, more of the same."""

SPLITS = {"test": 20, "validation": 15, "train": 65}
"""Percent of the problems."""

EVALUATION = {"validation": {"easy": 64, "hard": 96}, "test": {"easy": 96, "hard": 128}}
"""Prompts of the evaluation sets by tier."""

HARD_SHARE = 12 / 32
"""Share of hard problems among training prompts."""

NUM_TRAIN = 4480


class Task(Protocol):
    """A task; `Problem` is whatever it draws."""

    @property
    def name(self) -> str:
        """As in `builtin:NAME` and `reward.kind`."""

    @property
    def characters(self) -> str:
        """Every character of prompts and responses; a token each."""

    @property
    def max_new_tokens(self) -> int:
        """Tokens of the longest response that can be right, with its end of sequence."""

    def draw(self, split: str, tier: str, rng: random.Random) -> Any:
        """A problem of a split and tier."""

    def render(self, problem: Any, rng: random.Random, prefix: str = "") -> Prompt:
        """The prompt of a problem, with its name after `prefix` in the id."""

    def score(self, response: str, answer: str) -> float:
        """1.0 when the response solves the problem with this answer, else 0.0."""

    def readable(self, answer: str) -> bool:
        """Whether `score` can read the answer."""

    def skill_answer(self, problem: Any, rng: random.Random) -> str:
        """A right response by either strategy: what the warm-up teaches first."""

    def habit_answer(self, problem: Any, rng: random.Random, rare: float) -> str:
        """A response of the warm-started policy: right on easy problems, on hard ones wrong but for a share `rare`; slips in chains."""

    def is_rare(self, response: str) -> bool:
        """Whether the response uses the strategy that hard problems need."""


def split_of(task: str, problem: Any) -> str:
    """Return the split that a problem belongs to, whoever draws it."""
    percent = int(hashlib.md5(f"{task} {problem!r}".encode()).hexdigest(), 16) % 100
    for split, share in SPLITS.items():
        if percent < share:
            return split
        percent -= share
    raise AssertionError("the shares add up to 100")


def check_split(split: str) -> None:
    """Raise ValueError for a name that is no split."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def make_prompts(task: Task, split: str, count: int | None = None, seed: int = 0, hard_share: float = HARD_SHARE) -> list[Prompt]:
    """Return prompts of a task.

    Args:
        split: "train": `count` draws (default NUM_TRAIN) that may repeat. "validation", "test": the evaluation set, easy prompts first, the
            same for every seed; `count` keeps that many, evenly over the tiers.
        count: number of prompts, or None.
        seed: of the training draws.
        hard_share: probability of a hard problem among the training draws, in [0, 1].
    """
    check_split(split)
    if not 0 <= hard_share <= 1:
        raise ValueError(f"hard_share must be in [0, 1], got {hard_share}")
    if split == "train":
        rng = random.Random(f"{task.name}-{seed}")
        tiers = ["hard" if rng.random() < hard_share else "easy" for _ in range(NUM_TRAIN if count is None else count)]
        return [task.render(task.draw(split, tier, rng), rng, f"{i}/") for i, tier in enumerate(tiers)]
    prompts = {tier: _evaluation_set(task, split, tier) for tier in TIERS}
    if count is None:
        return prompts["easy"] + prompts["hard"]
    easy = min(count // 2, len(prompts["easy"]))
    return prompts["easy"][:easy] + prompts["hard"][: count - easy]


def _evaluation_set(task: Task, split: str, tier: str) -> list[Prompt]:
    """Prompts of different problems."""
    rng = random.Random(f"{task.name} {split} {tier}")
    chosen: dict[Any, None] = {}
    while len(chosen) < EVALUATION[split][tier]:
        chosen[task.draw(split, tier, rng)] = None
    return [task.render(problem, rng) for problem in chosen]
