"""Countdown-3: reach a target with three digits, each used once, and the operators + - * (usual precedence, no brackets).

    prompt  358=16?        response  8+5+3        reward 1
    prompt  358=43?        response  5*8+3        reward 1

A problem is easy when + and - suffice and hard when a * is needed. The warm-started policy almost never writes a *, so plain GRPO sharpens
the additive habit on the easy prompts while the hard ones, always wrong, give it no gradient: the task shows whether exploration survives.
Responses have a fixed length, so token-mean entropy is not diluted.
"""

from __future__ import annotations

import hashlib
import random
from functools import cache
from itertools import combinations_with_replacement, permutations, product

from aer_train.types import Prompt

OPERATORS = "+-*"
RESPONSE_CHARS = 5
HARD_SHARE = 12 / 32
"""Share of hard problems among training prompts."""
EVAL_EASY, EVAL_HARD = 96, 128
"""Size of the held-out evaluation set."""

Problem = tuple[tuple[int, int, int], int]
"""Sorted digits and target."""


@cache
def value(expression: str) -> int:
    """Value of digit-operator-digit-operator-digit with the usual precedence."""
    total, sign, factor = 0, 1, int(expression[0])
    for operator, digit in zip(expression[1::2], expression[2::2], strict=True):
        if operator == "*":
            factor *= int(digit)
        else:
            total += sign * factor
            sign, factor = (1 if operator == "+" else -1), int(digit)
    return total + sign * factor


@cache
def expressions(digits: tuple[int, int, int]) -> tuple[str, ...]:
    """Every expression over the digits, in a fixed order."""
    found = {f"{a}{p}{b}{q}{c}" for a, b, c in permutations(digits) for p, q in product(OPERATORS, repeat=2)}
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
def problems(split: str) -> dict[str, tuple[Problem, ...]]:
    """All problems of a split ("train" or "test") by tier. A quarter of them, by hash, is held out for testing."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    found: dict[str, list[Problem]] = {"easy": [], "hard": []}
    for digits in combinations_with_replacement(range(1, 10), 3):
        for target in sorted({value(e) for e in expressions(digits)}):
            problem = (digits, target)
            held_out = int(hashlib.md5(repr(problem).encode()).hexdigest(), 16) % 1000 < 250
            if 0 <= target <= 99 and held_out == (split == "test"):
                found[tier(problem)].append(problem)
    return {name: tuple(members) for name, members in found.items()}


def make_prompts(split: str, count: int | None = None, seed: int = 0) -> list[Prompt]:
    """Prompts with their digits in random order.

    Args:
        split: "train": `count` draws (default 4480), a share HARD_SHARE of them hard. "test": the held-out evaluation set, the same for
            every seed; `count` keeps that many, evenly over the tiers.
        count: number of prompts, or None.
        seed: of the training draws.
    """
    by_tier = problems(split)
    if split == "train":
        rng = random.Random(f"countdown-{seed}")
        drawn = [rng.choice(by_tier["hard" if rng.random() < HARD_SHARE else "easy"]) for _ in range(4480 if count is None else count)]
        return [render(problem, rng, f"{i}/") for i, problem in enumerate(drawn)]
    rng = random.Random(5)
    chosen = {"easy": rng.sample(by_tier["easy"], EVAL_EASY), "hard": rng.sample(by_tier["hard"], EVAL_HARD)}
    prompts = {name: [render(problem, rng) for problem in members] for name, members in chosen.items()}
    if count is None:
        return prompts["easy"] + prompts["hard"]
    easy = min(count // 2, EVAL_EASY)
    return prompts["easy"][:easy] + prompts["hard"][: count - easy]


def render(problem: Problem, rng: random.Random, prefix: str = "") -> Prompt:
    """The prompt of a problem, digits shuffled."""
    digits, target = list(problem[0]), problem[1]
    rng.shuffle(digits)
    question = f"{''.join(map(str, digits))}={target:02d}"
    return Prompt(id=f"countdown/{prefix}{question}", text=f"{question}?", answer=question, tier=tier(problem))


def score(response: str, answer: str) -> float:
    """1.0 when the response is exactly an expression over the digits of `answer` ("358=16") that reaches its target, else 0.0."""
    digits, target = answer.split("=")
    if len(response) != RESPONSE_CHARS or not response.isascii():
        return 0.0
    if not response[0::2].isdigit() or any(c not in OPERATORS for c in response[1::2]):
        return 0.0
    return float(sorted(response[0::2]) == sorted(digits) and value(response) == int(target))
