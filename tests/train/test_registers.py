"""Registers: the interpreter, the scorer, and responses that only a worked solution gets right."""

import random

import pytest

from aer_train.tasks import task
from aer_train.tasks.registers import direct, final, states, worked

REGISTERS = task("registers")
PROBLEM = ("358", ("b+a", "c-b", "a+c", "b-a"))  # by hand: b = 5+3 = 8; c = 8-8 = 0; a = 3+0 = 3; b = 8-3 = 5


def test_by_hand():
    assert states(PROBLEM) == ["388", "380", "380", "350"]
    assert worked(PROBLEM) == "pb+a388qc-b380ra+c380sb-a350=350" and direct(PROBLEM) == "=350"
    prompt = REGISTERS.render(PROBLEM, random.Random(0), "7/")
    assert (prompt.text, prompt.answer, prompt.tier) == ("358pb+aqc-bra+csb-a?", "350", "hard")
    assert prompt.id == "registers/7/358pb+aqc-bra+csb-a"
    assert REGISTERS.render(("000", ("a-b",)), random.Random(0)).tier == "easy"
    assert final(("010", ("a-b",))) == "910"  # modulo 10


@pytest.mark.parametrize(
    "response, reward",
    [
        ("=350", 1.0), ("pb+a388qc-b380ra+c380sb-a350=350", 1.0), ("qqq=350", 1.0), ("350", 0.0), ("=351", 0.0), ("=350=350", 0.0), ("=3500", 0.0), ("=350 ", 0.0),
        ("", 0.0), ("=", 0.0), ("=\u0663\u0665\u0660", 0.0), ("9" * 10**6 + "=350", 0.0),
    ],
)  # fmt: skip
def test_scorer(response, reward):
    assert REGISTERS.score(response, "350") == reward


def test_draws_have_their_tier_and_answers_are_what_they_should_be():
    rng = random.Random(0)
    for tier in ("easy", "hard"):
        for problem in [REGISTERS.draw("train", tier, rng) for _ in range(200)]:
            prompt = REGISTERS.render(problem, rng)
            assert prompt.tier == tier and set(prompt.text + worked(problem)) <= set(REGISTERS.characters)
            assert REGISTERS.score(REGISTERS.skill_answer(problem, rng), prompt.answer) == 1.0
            assert REGISTERS.score(REGISTERS.habit_answer(problem, rng, rare=0.0), prompt.answer) == float(tier == "easy")
            assert REGISTERS.score(REGISTERS.habit_answer(problem, rng, rare=1.0), prompt.answer) == 1.0
            assert len(worked(problem)) < REGISTERS.max_new_tokens, "room for the end of sequence"
            assert REGISTERS.is_rare(worked(problem)) and not REGISTERS.is_rare(direct(problem))
