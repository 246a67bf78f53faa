"""Chains: sums of digits modulo ten, one after the other, from one operation to eight; difficulty is graded and nothing is hidden.

    prompt  3+5+4-9?       response  823                   3 + 5 = 8, 8 + 4 = 12, 2 - 9 = -7, modulo ten

The warm-started policy gets one operation right in .95 of its samples. With every further one the rate falls by the same factor, to `rare`
at eight. The right digit is the most likely one at every place, so there is no strategy to find: a policy that is surer of what it
believes solves everything. Chains of up to four operations are the easy tier.
"""

from __future__ import annotations

import random
import re

from aer_train.tasks.prompts import check_split, split_of
from aer_train.types import Prompt

LONGEST = 8
"""Operations of the longest chain."""

LENGTHS = {"easy": (1, 4), "hard": (5, LONGEST)}
"""Operations of the shortest and the longest chain of a tier."""

FIRST = 0.95
"""Probability that the warm-started policy gets the first operation right."""

_CHAIN = re.compile(rf"[1-9](?:[-+][1-9]){{1,{LONGEST}}}", re.ASCII)


class Chains:
    """The task; it has no parameters. A problem is its text, as in "3+5+4-9"."""

    name = "chains"
    characters = "0123456789+-?"
    max_new_tokens = LONGEST + 1

    def draw(self, split: str, tier: str, rng: random.Random) -> str:
        check_split(split)
        while True:
            steps = range(rng.randint(*LENGTHS[tier]))
            problem = rng.choice("123456789") + "".join(rng.choice("+-") + rng.choice("123456789") for _ in steps)
            if split_of(self.name, problem) == split:
                return problem

    def render(self, problem: str, rng: random.Random, prefix: str = "") -> Prompt:
        tier = "easy" if len(results(problem)) <= LENGTHS["easy"][1] else "hard"
        return Prompt(id=f"{self.name}/{prefix}{problem}", text=f"{problem}?", answer=problem, tier=tier)

    def score(self, response: str, answer: str) -> float:
        """1.0 when every result of the chain `answer` is right, else 0.0."""
        return float(response == results(answer))

    def readable(self, answer: str) -> bool:
        return _CHAIN.fullmatch(answer) is not None

    def skill_answer(self, problem: str, rng: random.Random) -> str:
        return results(problem)

    def habit_answer(self, problem: str, rng: random.Random, rare: float) -> str:
        """The results with slips, each of which the rest goes on from; eight operations have none with probability `rare`."""
        first = max(FIRST, rare)
        later = (rare / first) ** (1 / (LONGEST - 1))
        digit, found = problem[0], ""
        for operator, operand in operations(problem):
            right = step(digit, operator, operand)
            digit = right if rng.random() < (later if found else first) else rng.choice([other for other in "0123456789" if other != right])
            found += digit
        return found

    def is_rare(self, response: str) -> bool:
        """Never: no strategy is rare."""
        return False


def operations(problem: str) -> list[tuple[str, str]]:
    """Return each operator with what follows it."""
    return list(zip(problem[1::2], problem[2::2], strict=True))


def step(digit: str, operator: str, operand: str) -> str:
    """Return the last digit of one operation; that of -7 is 3, as modulo ten."""
    a, b = int(digit), int(operand)
    return str((a + b if operator == "+" else a - b) % 10)


def results(problem: str) -> str:
    """Return the result of every operation, from left to right."""
    digit, found = problem[0], ""
    for operator, operand in operations(problem):
        digit = step(digit, operator, operand)
        found += digit
    return found
