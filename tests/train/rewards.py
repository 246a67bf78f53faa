"""Reward functions for tests, named by their dotted paths."""

import asyncio
import time
from typing import Any


def digit_share(response: str, answer: str) -> float:
    """Share of the response's characters, out of the three it may have, that are digits."""
    return min(1.0, sum(c.isdigit() for c in response) / 3)


def even_share(response: str, answer: str) -> float:
    """Share of the eight characters that a response may have that are even digits: seldom the same for all responses of a group."""
    return sum(c in "02468" for c in response) / 8


def broken(response: str, answer: str) -> float:
    """A reward function that never gives a verdict."""
    raise KeyError("no such column")


def slow(response: str, answer: str) -> float:
    """A reward function that takes longer than a test."""
    time.sleep(400)
    return 1.0


def length(response: str) -> float:
    """Characters of the response: a reward without a bound."""
    return float(len(response))


def none_of(response: str) -> None:
    """Nothing to say."""


def fails_on_a(response: str) -> float:
    """A function that fails for some responses."""
    if response.startswith("a"):
        raise KeyError("a")
    return 1.0


# what a function may be: each says what it was called with


def by_place(text: str, gold: str) -> float:
    return float((text, gold) == ("r", "g"))


def by_name(response: str, answer: str, prompt: str, level: int) -> float:
    return float((response, answer, prompt, level) == ("r", "g", "p", 3))


def misspelled(response: str, awnser: str) -> float:
    return 1.0


def half_known(output: str, level: int) -> float:
    return 1.0


def keyword_only(completion: str, *, level: int, other: str = "default") -> float:
    return float((completion, level, other) == ("r", 3, "default"))


def whatever(**values: Any) -> float:
    return float(values["level"] == 3 and values["response"] == values["completion"] == "r" and values["answer"] == "g")


def tuned(response: str, threshold: float = 0.5) -> float:
    return threshold


async def asynchronous(response: str, answer: str) -> float:
    await asyncio.sleep(0)
    return float((response, answer) == ("r", "g"))


def trl(completions: list[Any], prompts: list[Any], level: list[int], **columns: Any) -> list[float]:
    """TRL's form, on text."""
    return [float((c, p, n) == ("r", "p", 3) and columns["raw"] == [["g"]]) for c, p, n in zip(completions, prompts, level, strict=True)]


def trl_chat(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """TRL's form, on conversations."""
    return [float(c[0]["content"] == "r" and p[-1]["content"] == "p") for c, p in zip(completions, prompts, strict=True)]


def trl_none(completions: list[Any], **columns: Any) -> list[float | None]:
    """TRL's way to say that a function has nothing to say."""
    return [None for _ in completions]


def trl_state(completions: list[Any], trainer_state: Any) -> list[float]:
    """Needs what only TRL has."""
    return [trainer_state.step]


def verl(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> dict[str, float]:
    """verl's form."""
    return {"score": float((data_source, solution_str, ground_truth, extra_info) == ("toy", "r", "g", {"index": 1})), "acc": 7.0}
