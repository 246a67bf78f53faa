"""Word problems from files and hub datasets, each with its number of operations; and which of them is for what."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aer_train.data.columns import MISSING, column, gold_answers
from aer_train.data.sources import read_table
from aer_train.tasks.prompts import TIERS
from aer_train.types import Row
from aer_train.verify.extract import gold_answer
from study.real.equations import annotated_lines, lines_of, number_text, result_of

COLUMNS = {
    "problem": ("problem", "question_concat", "question"),
    "answer": ("answer", "Answer", "final_ans"),
    "equation": ("equation", "Equation"),
    "operations": ("operations",),
}
"""Names of columns that are read, by what they hold: those of a file of your own, of SVAMP, MultiArith and GSM8K."""


@dataclass(frozen=True)
class Problem:
    """A word problem."""

    id: str
    problem: str
    answer: str
    tier: str
    """easy or hard, by its number of operations."""
    lines: tuple[str, ...]
    """Its solution, a line for each operation; empty where it has no equation, or one that does not lead to the answer."""


def read_problems(sources: Sequence[Row], operations: tuple[int, int]) -> list[Problem]:
    """Return the problems of all sources, each text once.

    Args:
        sources: tables with `source` (what `aer_train.data.read_table` reads), and perhaps `split` of a hub dataset, `revision`, and
            `operations` of problems that have no equation.
        operations: most of an easy and of a hard problem; problems with none or more are left out.
    Raises:
        ValueError - a source cannot be read, lacks a column, or a tier is empty.
    """
    found: dict[str, Problem] = {}
    for source in sources:
        for number, row in enumerate(read_table(source["source"], source.get("split", "train"), source.get("revision")).rows):
            place = f"{source['source']} row {number}"
            problem = _problem(row, place, source.get("operations"), operations)
            if problem is not None:
                found.setdefault(" ".join(problem.problem.lower().split()), problem)
    for tier in TIERS:
        if not any(problem.tier == tier for problem in found.values()):
            raise ValueError(f"problems must have some of {operations} operations for easy and hard, got no {tier} ones")
    return list(found.values())


def split_problems(problems: Sequence[Problem], sizes: Mapping[str, Sequence[int]], seed: int) -> dict[str, list[Problem]]:
    """Return the problems of each part, and those that are left as `train`; no problem is in two of them.

    Args:
        sizes: part: how many easy and hard problems. Those of `warmup` have lines.
        seed: of the draw.
    Raises:
        ValueError - there are too few.
    """
    rng, parts = random.Random(seed), {name: list[Problem]() for name in (*sizes, "train")}
    for place, tier in enumerate(TIERS):
        left = [problem for problem in problems if problem.tier == tier]
        rng.shuffle(left)
        for name, counts in sizes.items():
            able = [problem for problem in left if problem.lines or name != "warmup"][: counts[place]]
            parts[name] += able
            left = [problem for problem in left if problem not in set(able)]
            if len(able) < counts[place] or not left:
                raise ValueError(f"split.{name} must leave {tier} problems to train on, got {counts[place]} of {len(able) + len(left)}")
        parts["train"] += left
    for part in parts.values():
        rng.shuffle(part)
    return parts


def with_share(problems: Sequence[Problem], hard: float) -> list[Problem]:
    """Return as many problems as can be had with this share of hard ones, in (0, 1), in the order of the split."""
    easy_ones, hard_ones = ([problem for problem in problems if problem.tier == tier] for tier in TIERS)
    total = min(len(easy_ones) / (1 - hard), len(hard_ones) / hard)
    return easy_ones[: max(1, round(total * (1 - hard)))] + hard_ones[: max(1, round(total * hard))]


def rows_of(problems: Sequence[Problem]) -> list[Row]:
    """Return problems as rows of a dataset."""
    return [asdict(problem) for problem in problems]


def _problem(row: Row, place: str, known: int | None, operations: tuple[int, int]) -> Problem | None:
    text, answer = _cell(row, "problem", place), _cell(row, "answer", place)
    golds = gold_answers(answer)
    if not isinstance(text, str) or not golds:
        raise ValueError(f"{place} must have a problem that is text and an answer that is text or a number, got {text!r} and {answer!r}")
    equation = _cell(row, "equation", place, needed=False)
    lines = annotated_lines(golds[0]) if equation is None else lines_of(str(equation))
    count = _cell(row, "operations", place, needed=False) or len(lines) or known or 0
    if not 1 <= count <= operations[1]:
        return None
    answer = _plain(gold_answer(golds[0]))
    identity = str(row.get("id", place))
    tier = TIERS[count > operations[0]]
    return Problem(identity, text.strip(), answer, tier, tuple(lines) if result_of(lines) == answer else ())


def _cell(row: Row, name: str, place: str, needed: bool = True) -> Any:
    value = next((found for found in (column(row, known) for known in COLUMNS[name]) if found is not MISSING), None)
    if value is None and needed:
        raise ValueError(f"{place} must have a column {' or '.join(COLUMNS[name])}, got {', '.join(sorted(row))}")
    return value


def _plain(answer: str) -> str:
    """A number without its commas and an empty fraction, as the last line of a solution has it; other answers as they are."""
    try:
        return number_text(float(answer.replace(",", "")))
    except ValueError:
        return answer
