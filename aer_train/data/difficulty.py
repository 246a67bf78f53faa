"""Which prompts a step takes, and how many responses each gets, by the rate at which each was solved so far.

    rate <- decay * rate + (1 - decay) * accuracy of the newest group          (the first group's accuracy at first)

With everything off prompts come in the plain order (`order_at`) and nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from aer_train import dist
from aer_train.config.tree import DifficultyConfig
from aer_train.data.prompts import order_at
from aer_train.seeds import generator
from aer_train.types import Group, Prompt, Row

LEAST_WEIGHT = 1e-12
"""Of a prompt far from the target: it is drawn when nothing else is left."""

ROUNDING = 1e-9
"""Responses: what a share may lack of a whole number."""


class Difficulty:
    """Pass rates of prompts, by their place in the data, and what follows from them. All ranks see the same groups, so all agree."""

    def __init__(self, config: DifficultyConfig, prompts: Sequence[Prompt], seed: int) -> None:
        """prompts: all of them, in their order."""
        self.config, self.prompts, self.seed = config, prompts, seed
        self.rates = np.full(len(prompts), np.nan)
        """(prompts,) pass rates in [0, 1]; NaN for a prompt that was not seen."""
        self.last = np.zeros(len(prompts), np.int64)
        """(prompts,) step at which each was seen last."""
        self.skipped = 0
        """Solved prompts that the newest draws passed over, or could have drawn."""

    @property
    def on(self) -> bool:
        """Whether pass rates decide anything."""
        return is_on(self.config)

    def take(self, position: int, count: int, step: int, part: int = 0, skip: Sequence[int] = ()) -> tuple[list[int], int]:
        """Return the places of the next prompts, and the position in the plain order after them.

        Args:
            position: where the plain order is.
            step, part: name the draw.
            skip: places that are not wanted again, where prompts are chosen by difficulty.
        """
        target = self.config.target
        if target is not None:
            return dist.from_main(lambda: self._near_target(target, count, step, part, skip)), position + count
        if self.config.drop_solved is None:
            return order_at(len(self.prompts), self.seed, position, count), position + count
        return self._unsolved(position, count, step)

    def group_sizes(self, places: Sequence[int], size: int) -> int | list[int]:
        """Return the number of responses to each prompt: `size`, or more for unsolved ones and as many fewer for others."""
        if self.config.boost == 1:
            return size
        shares = [self.config.boost if self.rates[place] < self.config.unsolved else 1.0 for place in places]
        return allotted(shares, size * len(places), self.config.min_group)

    def update(self, places: Sequence[int], groups: Sequence[Group], step: int) -> None:
        """Take note of the newest groups; one in which nothing was graded says nothing."""
        if not self.on:
            return
        for place, group in zip(places, groups, strict=True):
            graded = [verdict.accuracy for verdict in group.verdicts if verdict.graded]
            if graded:
                newest, decay = sum(graded) / len(graded), self.config.decay
                past = self.rates[place]
                self.rates[place] = newest if np.isnan(past) else decay * past + (1 - decay) * newest
                self.last[place] = step

    def metrics(self, sizes: Sequence[int]) -> Row:
        """Return what is known of all prompts after a step.

        Args:
            sizes: of the step's groups.
        """
        if not self.on:
            return {}
        rates = self.rates[~np.isnan(self.rates)]
        solved = 1.0 if self.config.drop_solved is None else self.config.drop_solved
        return {
            "difficulty/pass_rate": float(rates.mean()) if rates.size else None,
            "difficulty/seen_frac": rates.size / len(self.prompts),
            "difficulty/solved_frac": int((rates >= solved).sum()) / len(self.prompts),
            "difficulty/unsolved_frac": int((rates < self.config.unsolved).sum()) / len(self.prompts),
            "difficulty/skipped": self.skipped,
            "difficulty/group_min": min(sizes),
            "difficulty/group_max": max(sizes),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        places = np.flatnonzero(~np.isnan(self.rates))
        kept = {"places": places.tolist(), "rates": self.rates[places].tolist(), "last": self.last[places].tolist()}
        return {"prompts": self._digest(), **kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept.

        Raises:
            ValueError - it is of other data.
        """
        if state["prompts"] != self._digest():
            raise ValueError(f"data.train must give the prompts whose pass rates were kept, got {len(self.prompts)} others")
        self.rates[state["places"]], self.last[state["places"]] = state["rates"], state["last"]

    def _digest(self) -> str:
        """Names the prompts and their order."""
        text = json.dumps([[prompt.id, prompt.text, prompt.answer] for prompt in self.prompts])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _unsolved(self, position: int, count: int, step: int) -> tuple[list[int], int]:
        """The plain order without solved prompts; where a whole epoch has too few others, the rest of the step are solved ones."""
        found: list[int] = []
        start, dropped = position, self._dropped(step)
        for place in order_at(len(self.prompts), self.seed, start, len(self.prompts)):
            if len(found) == count:
                break
            position += 1
            found += [] if dropped[place] else [place]
        self.skipped = position - start - len(found)
        missing = count - len(found)
        return found + order_at(len(self.prompts), self.seed, position, missing), position + missing

    def _near_target(self, target: float, count: int, step: int, part: int, skip: Sequence[int]) -> list[int]:
        """A draw without replacement by weight: the smallest of exponential times at these rates; solved prompts come after all others."""
        times = generator(self.seed, "difficulty", step, part).exponential(size=len(self.prompts))
        far = np.where(np.isnan(self.rates), 0.0, (self.rates - target) / self.config.width)
        weights, dropped = np.maximum(np.exp(-0.5 * far**2), LEAST_WEIGHT), self._dropped(step)
        self.skipped = int(dropped.sum())
        unwanted = set(skip)
        return [place for place in np.lexsort((times / weights, dropped)).tolist() if place not in unwanted][:count]

    def _dropped(self, step: int) -> np.ndarray:
        """(prompts,) bool: solved, and not to be looked at again yet."""
        drop, recheck = self.config.drop_solved, self.config.recheck
        if drop is None:
            return np.zeros(len(self.prompts), bool)
        solved: np.ndarray = self.rates >= drop
        return solved & (step - self.last < recheck) if recheck else solved


def is_on(config: DifficultyConfig) -> bool:
    """Whether pass rates are kept."""
    return config.drop_solved is not None or config.target is not None or config.boost > 1


def allotted(shares: Sequence[float], total: int, least: int) -> list[int]:
    """Return whole numbers in proportion to `shares` that add up to `total`, none below `least`; the largest remainders are rounded up.

    Args:
        shares: > 0.
        total: at least `least` for each.
    """
    free, at_least = list(range(len(shares))), list[int]()
    while True:
        left = total - least * len(at_least)
        unit = left / sum(shares[i] for i in free)
        low = [i for i in free if shares[i] * unit < least - ROUNDING]
        if not low:
            break
        at_least += low
        free = [i for i in free if i not in low]
    exact = {i: shares[i] * unit for i in free}
    sizes = [int(exact.get(i, least)) for i in range(len(shares))]
    by_remainder = sorted(free, key=lambda i: (int(exact[i]) - exact[i], i))
    for i in by_remainder[: total - sum(sizes)]:
        sizes[i] += 1
    return sizes
