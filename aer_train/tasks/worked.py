"""Worked: Countdown with three digits in which a product must be worked out.

    prompt  358=16?        response  8+5+3                 a sum, directly
    prompt  358=64?        response  3+5=08,8;08*8=64      a worked solution

A direct answer uses + and - only. A worked solution takes two of the digits, writes the result with two digits and what is left after a
comma, and goes on from there: (3 + 5) * 8. Every result must be right and in 0 .. 99.

A problem is easy when a direct answer exists and hard when only a worked solution reaches the target. The warm-started policy almost never
works anything out: it answers with the sum that comes nearest. Once it does, its responses grow from 6 tokens to 17, of which most are
results and copies that are nearly certain: token-mean entropy is diluted, although nothing has become less diverse.
"""

from __future__ import annotations

import random
import re
from functools import cache
from itertools import combinations_with_replacement, permutations, product

from aer_train.tasks.countdown import OPERATORS, Problem, expressions, value
from aer_train.tasks.prompts import TIERS, check_split, split_of
from aer_train.types import Prompt

_DIRECT = re.compile(r"[1-9][+-][1-9][+-][1-9]")
_WORKED = re.compile(r"([1-9])([-+*])([1-9])=(\d\d),([1-9]);(\d\d)([-+*])([1-9])=(\d\d)", re.ASCII)
_ANSWER = re.compile(r"[1-9]{3}=\d\d", re.ASCII)

Chain = tuple[int, str, int, str, int]
"""(a, operator, b, operator, c): (a . b) . c."""


class Worked:
    """The task; it has no parameters."""

    name = "worked"
    characters = "0123456789+-*=?,;"
    max_new_tokens = len("3+5=08,8;08*8=64") + 1

    def draw(self, split: str, tier: str, rng: random.Random) -> Problem:
        return rng.choice(problems(split)[tier])

    def render(self, problem: Problem, rng: random.Random, prefix: str = "") -> Prompt:
        """The digits are shuffled."""
        digits = list(problem[0])
        rng.shuffle(digits)
        question = f"{''.join(map(str, digits))}={problem[1]:02d}"
        tier = "easy" if direct_answers(problem) else "hard"
        return Prompt(id=f"{self.name}/{prefix}{question}", text=f"{question}?", answer=question, tier=tier)

    def score(self, response: str, answer: str) -> float:
        """1.0 for a direct answer or a worked solution over the digits of `answer` ("358=64") that reaches its target, else 0.0."""
        digits, target = answer.split("=")
        if _DIRECT.fullmatch(response):
            return float(sorted(response[0::2]) == sorted(digits) and value(response) == int(target))
        found = _WORKED.fullmatch(response)
        if found is None:
            return 0.0
        a, first, b, result, left, again, second, c, last = found.groups()
        consistent = left == c and again == result and last == target and sorted(a + b + c) == sorted(digits)
        return float(consistent and results((int(a), first, int(b), second, int(c))) == (int(result), int(last)))

    def readable(self, answer: str) -> bool:
        return _ANSWER.fullmatch(answer) is not None

    def skill_answer(self, problem: Problem, rng: random.Random) -> str:
        """A solution; an easy problem's is direct or worked, by the toss of a coin."""
        direct = direct_answers(problem)
        return rng.choice(direct) if direct and rng.random() < 0.5 else worked(rng.choice(chains(problem)))

    def habit_answer(self, problem: Problem, rng: random.Random, rare: float) -> str:
        """The sum nearest to the target, right or wrong; rarely a worked solution."""
        if rng.random() < rare:
            return worked(rng.choice(chains(problem)))
        sums = [e for e in expressions(problem[0]) if "*" not in e]
        best = min(abs(value(e) - problem[1]) for e in sums)
        return rng.choice([e for e in sums if abs(value(e) - problem[1]) == best])

    def is_rare(self, response: str) -> bool:
        return "=" in response


def results(chain: Chain) -> tuple[int, int]:
    """Return the two results of a chain."""
    a, first, b, second, c = chain
    result = _apply(a, first, b)
    return result, _apply(result, second, c)


def worked(chain: Chain) -> str:
    """Return a chain as it is written."""
    a, first, b, second, c = chain
    result, last = results(chain)
    return f"{a}{first}{b}={result:02d},{c};{result:02d}{second}{c}={last:02d}"


@cache
def chains(problem: Problem) -> tuple[Chain, ...]:
    """Every chain that reaches the target with results in 0 .. 99."""
    return tuple(chain for chain in _chains(problem[0]) if results(chain)[1] == problem[1])


@cache
def direct_answers(problem: Problem) -> tuple[str, ...]:
    """Every sum that reaches the target."""
    return tuple(e for e in expressions(problem[0]) if "*" not in e and value(e) == problem[1])


@cache
def problems(split: str) -> dict[str, tuple[Problem, ...]]:
    """All problems of a split by tier: those that a chain solves."""
    check_split(split)
    found: dict[str, list[Problem]] = {tier: [] for tier in TIERS}
    for digits in combinations_with_replacement(range(1, 10), 3):
        for target in sorted({results(chain)[1] for chain in _chains(digits)}):
            if split_of(Worked.name, (digits, target)) == split:
                found["easy" if direct_answers((digits, target)) else "hard"].append((digits, target))
    return {tier: tuple(members) for tier, members in found.items()}


@cache
def _chains(digits: tuple[int, ...]) -> tuple[Chain, ...]:
    """Every chain over the digits whose results are in 0 .. 99, in a fixed order."""
    found = {(a, p, b, q, c) for a, b, c in permutations(digits) for p, q in product(OPERATORS, repeat=2)}
    return tuple(sorted(chain for chain in found if all(0 <= result <= 99 for result in results(chain))))


def _apply(a: int, operator: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[operator]
