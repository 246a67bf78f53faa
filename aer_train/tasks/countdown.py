"""Countdown: reach a target with some digits, each used once, and the operators + - * (usual precedence, no brackets).

    prompt  358=16?        response  8+5+3        reward 1
    prompt  358=43?        response  5*8+3        reward 1

A problem is easy when + and - suffice and hard when a * is needed. The warm-started policy almost never writes a *, so plain GRPO sharpens
the additive habit on the easy prompts while the hard ones, always wrong, give it no gradient: the task shows whether exploration survives.
Responses have a fixed length, so token-mean entropy is not diluted.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement, permutations, product

from aer_train.tasks.prompts import TIERS, check_split, split_of
from aer_train.types import Prompt

OPERATORS = "+-*"

Problem = tuple[tuple[int, ...], int]
"""Sorted digits and target."""


@dataclass(frozen=True)
class Countdown:
    """The task with a number of digits; targets are 0 to 99."""

    num_digits: int

    @property
    def name(self) -> str:
        return "countdown" if self.num_digits == 3 else f"countdown{self.num_digits}"

    @property
    def characters(self) -> str:
        return "0123456789+-*=?"

    @property
    def max_new_tokens(self) -> int:
        return 2 * self.num_digits

    def draw(self, split: str, tier: str, rng: random.Random) -> Problem:
        return rng.choice(problems(self, split)[tier])

    def render(self, problem: Problem, rng: random.Random, prefix: str = "") -> Prompt:
        """The digits are shuffled."""
        digits, target = list(problem[0]), problem[1]
        rng.shuffle(digits)
        question = f"{''.join(map(str, digits))}={target:02d}"
        return Prompt(id=f"{self.name}/{prefix}{question}", text=f"{question}?", answer=question, tier=tier(problem))

    def score(self, response: str, answer: str) -> float:
        """1.0 when the response is exactly an expression over the digits of `answer` ("358=16") that reaches its target, else 0.0."""
        digits, target = answer.split("=")
        if len(response) != 2 * self.num_digits - 1 or not response.isascii():
            return 0.0
        if not response[0::2].isdigit() or any(c not in OPERATORS for c in response[1::2]):
            return 0.0
        return float(sorted(response[0::2]) == sorted(digits) and value(response) == int(target))

    def readable(self, answer: str) -> bool:
        return re.fullmatch(rf"\d{{{self.num_digits}}}=\d\d", answer, re.ASCII) is not None

    def skill_answer(self, problem: Problem, rng: random.Random) -> str:
        """A solution; one without * where there is one."""
        found = solutions(problem)
        additive = [e for e in found if "*" not in e]
        return rng.choice(additive or list(found))

    def habit_answer(self, problem: Problem, rng: random.Random, rare: float) -> str:
        """The additive attempt nearest to the target, right or wrong; rarely a solution with *."""
        starred = [e for e in solutions(problem) if "*" in e]
        if starred and rng.random() < rare:
            return rng.choice(starred)
        additive = [e for e in expressions(problem[0]) if "*" not in e]
        best = min(abs(value(e) - problem[1]) for e in additive)
        return rng.choice([e for e in additive if abs(value(e) - problem[1]) == best])

    def is_rare(self, response: str) -> bool:
        return "*" in response


@cache
def value(expression: str) -> int:
    """Value of digit-operator-digit-... with the usual precedence."""
    total, sign, factor = 0, 1, int(expression[0])
    for operator, digit in zip(expression[1::2], expression[2::2], strict=True):
        if operator == "*":
            factor *= int(digit)
        else:
            total += sign * factor
            sign, factor = (1 if operator == "+" else -1), int(digit)
    return total + sign * factor


@cache
def expressions(digits: tuple[int, ...]) -> tuple[str, ...]:
    """Every expression over the digits, in a fixed order."""
    operators = list(product(OPERATORS, repeat=len(digits) - 1))
    found = {"".join(f"{a}{p}" for a, p in zip(order, (*used, ""), strict=True)) for order in permutations(digits) for used in operators}
    return tuple(sorted(found))


@cache
def solutions(problem: Problem) -> tuple[str, ...]:
    """Every expression that reaches the target."""
    digits, target = problem
    return tuple(e for e in expressions(digits) if value(e) == target)


def tier(problem: Problem) -> str:
    """easy when some solution does without *, else hard."""
    return "easy" if any("*" not in e for e in solutions(problem)) else "hard"


@cache
def problems(task: Countdown, split: str) -> dict[str, tuple[Problem, ...]]:
    """All problems of a split by tier."""
    check_split(split)
    found: dict[str, list[Problem]] = {name: [] for name in TIERS}
    for digits in combinations_with_replacement(range(1, 10), task.num_digits):
        targets = [(value(e), "*" not in e) for e in expressions(digits)]
        additive = {target for target, plain in targets if plain}
        for target in sorted({target for target, _ in targets if 0 <= target <= 99}):
            if split_of(task.name, (digits, target)) == split:
                found["easy" if target in additive else "hard"].append((digits, target))
    return {name: tuple(members) for name, members in found.items()}
