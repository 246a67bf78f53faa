"""Registers: run a little program on three digits a, b, c; + and - are modulo 10.

    prompt  358pb+a?               response  =388                        reward 1
    prompt  358pb+aqc-brb-aswc+a?  response  pb+a388qc-b380...=...       reward 1 for the right last three digits

Each instruction is labelled p, q, r, s and changes its first register: `b+a` adds a to b. A response ends in `=` and the final registers;
before it, a worked solution repeats every instruction with the registers after it. Only the final registers are graded.

A problem of one or two instructions is easy: it can be answered directly. One of three or four is hard: a small policy gets it right only
by writing out the working, which the warm-started policy almost never does; it answers as if the program ended after two instructions. A
guess is right once in a thousand times. Once the working is found, responses grow from 5 tokens to as many as 33, mostly copied ones:
token-mean entropy is diluted.
"""

from __future__ import annotations

import random
import re

from aer_train.tasks.prompts import check_split, split_of
from aer_train.types import Prompt

REGISTERS = "abc"
LABELS = "pqrs"
LENGTHS = {"easy": (1, 2), "hard": (3, 4)}
"""Instructions of a problem."""

Problem = tuple[str, tuple[str, ...]]
"""Registers at the start, and instructions without their labels."""

_ANSWER = re.compile(r"\d\d\d", re.ASCII)


class Registers:
    """The task; it has no parameters."""

    name = "registers"
    characters = "0123456789+-=?" + REGISTERS + LABELS
    max_new_tokens = len("pb+a388") * LENGTHS["hard"][-1] + len("=388") + 1

    def draw(self, split: str, tier: str, rng: random.Random) -> Problem:
        """A hard program still changes the registers after its second instruction."""
        check_split(split)
        while True:
            problem = f"{rng.randrange(1000):03d}", tuple(_instruction(rng) for _ in range(rng.choice(LENGTHS[tier])))
            if split_of(self.name, problem) == split and (tier == "easy" or final(problem) != final(_shortened(problem))):
                return problem

    def render(self, problem: Problem, rng: random.Random, prefix: str = "") -> Prompt:
        start, program = problem
        text = f"{start}{''.join(label + instruction for label, instruction in zip(LABELS, program, strict=False))}?"
        tier = "easy" if len(program) <= LENGTHS["easy"][-1] else "hard"
        return Prompt(id=f"{self.name}/{prefix}{text[:-1]}", text=text, answer=final(problem), tier=tier)

    def score(self, response: str, answer: str) -> float:
        """1.0 when all that follows the first = is the final registers."""
        return float(len(response) <= self.max_new_tokens and response.partition("=")[2] == answer)

    def readable(self, answer: str) -> bool:
        return _ANSWER.fullmatch(answer) is not None

    def skill_answer(self, problem: Problem, rng: random.Random) -> str:
        """Worked; an easy problem also directly."""
        short = len(problem[1]) <= LENGTHS["easy"][-1]
        return direct(problem) if short and rng.random() < 0.5 else worked(problem)

    def habit_answer(self, problem: Problem, rng: random.Random, rare: float) -> str:
        """The direct answer after two instructions, whatever follows; rarely a worked solution."""
        return worked(problem) if rng.random() < rare else direct(_shortened(problem))

    def is_rare(self, response: str) -> bool:
        return not response.startswith("=")


def states(problem: Problem) -> list[str]:
    """The registers after each instruction."""
    registers, found = dict(zip(REGISTERS, map(int, problem[0]), strict=True)), []
    for changed, sign, other in map(tuple, problem[1]):
        registers[changed] = (registers[changed] + (registers[other] if sign == "+" else -registers[other])) % 10
        found.append("".join(str(registers[name]) for name in REGISTERS))
    return found


def final(problem: Problem) -> str:
    """The registers after the last instruction."""
    return states(problem)[-1]


def direct(problem: Problem) -> str:
    """The answer without working."""
    return f"={final(problem)}"


def worked(problem: Problem) -> str:
    """The answer after every instruction and the registers that it leaves."""
    steps = zip(LABELS, problem[1], states(problem), strict=False)
    return "".join(label + instruction + registers for label, instruction, registers in steps) + direct(problem)


def _shortened(problem: Problem) -> Problem:
    return problem[0], problem[1][: LENGTHS["easy"][-1]]


def _instruction(rng: random.Random) -> str:
    changed, other = rng.sample(REGISTERS, 2)
    return f"{changed}{rng.choice('+-')}{other}"
