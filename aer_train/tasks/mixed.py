"""Mixed: two kinds of prompts that have nothing to do with each other, as in a dataset that was put together from several.

    easy    prompt  35851>?        response  85531         the digits in descending order
    hard    prompt  4189=27?       response  4*9-1-8

A hard prompt is one of Countdown-4 that needs a *, which the warm-started policy almost never writes. An easy one asks for a sorting that
it knows, and gets wrong half of the time by a slip: two neighbours swapped. In the other tasks both tiers are of one kind, so that what is
done for one prompt reaches all; here a bonus on the prompts of one tier can stay with them.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from itertools import combinations_with_replacement

from aer_train.tasks.countdown import Countdown, Problem, problems
from aer_train.tasks.prompts import check_split, split_of
from aer_train.types import Prompt

COUNTDOWN = Countdown(4)
NUM_DIGITS = 5
"""Of a sorting."""
SLIP = 0.5
"""Probability that the warm-started policy swaps two neighbours."""


class Mixed:
    """The task; it has no parameters. A problem of its easy tier is what comes out of the sorting, one of its hard tier a `Problem`."""

    name = "mixed"
    characters = "0123456789+-*=?>"
    max_new_tokens = COUNTDOWN.max_new_tokens

    def draw(self, split: str, tier: str, rng: random.Random) -> str | Problem:
        return rng.choice(sortings(split)) if tier == "easy" else rng.choice(problems(COUNTDOWN, split)["hard"])

    def render(self, problem: str | Problem, rng: random.Random, prefix: str = "") -> Prompt:
        """The digits are shuffled."""
        if not isinstance(problem, str):
            prompt = COUNTDOWN.render(problem, rng)
            return replace(prompt, id=f"{self.name}/{prefix}{prompt.answer}")
        digits = list(problem)
        rng.shuffle(digits)
        question = "".join(digits)
        return Prompt(id=f"{self.name}/{prefix}{question}", text=f"{question}>?", answer=question, tier="easy")

    def score(self, response: str, answer: str) -> float:
        """1.0 for the digits of `answer` ("35851") in descending order, or a solution of the Countdown problem `answer` ("4189=27")."""
        if "=" in answer:
            return COUNTDOWN.score(response, answer)
        return float(response == "".join(sorted(answer, reverse=True)))

    def readable(self, answer: str) -> bool:
        return COUNTDOWN.readable(answer) or (len(answer) == NUM_DIGITS and answer.isascii() and answer.isdigit())

    def skill_answer(self, problem: str | Problem, rng: random.Random) -> str:
        return problem if isinstance(problem, str) else COUNTDOWN.skill_answer(problem, rng)

    def habit_answer(self, problem: str | Problem, rng: random.Random, rare: float) -> str:
        """A sorting with a slip in one of two; the additive attempt nearest to the target, rarely a solution with *."""
        if not isinstance(problem, str):
            return COUNTDOWN.habit_answer(problem, rng, rare)
        places = [place for place in range(NUM_DIGITS - 1) if problem[place] != problem[place + 1]]
        if not places or rng.random() >= SLIP:
            return problem
        place = rng.choice(places)
        return problem[:place] + problem[place + 1] + problem[place] + problem[place + 2 :]

    def is_rare(self, response: str) -> bool:
        return COUNTDOWN.is_rare(response)


@cache
def sortings(split: str) -> tuple[str, ...]:
    """Return all digits of a split in descending order."""
    check_split(split)
    found = ("".join(digits) for digits in combinations_with_replacement("987654321", NUM_DIGITS))
    return tuple(digits for digits in found if split_of(Mixed.name, digits) == split)
