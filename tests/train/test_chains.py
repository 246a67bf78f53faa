"""Chains: the arithmetic of its results, the scorer, tiers, and the rates at which warm-up answers are right."""

import random

import pytest

from aer_train.tasks import task, warmup
from aer_train.tasks.chains import FIRST, LENGTHS, LONGEST, operations, results
from aer_train.tasks.prompts import TIERS

CHAINS = task("chains")


def test_by_hand():
    assert results("3+5+4-9") == "823" and operations("3+5+4-9") == [("+", "5"), ("+", "4"), ("-", "9")]
    prompt = CHAINS.render("3+5+4-9", random.Random(0), "7/")
    assert (prompt.id, prompt.text, prompt.answer, prompt.tier) == ("chains/7/3+5+4-9", "3+5+4-9?", "3+5+4-9", "easy")
    assert CHAINS.render("1+1+1+1+1+1", random.Random(0)).tier == "hard"


@pytest.mark.parametrize(
    "response, reward",
    [("823", 1.0), ("822", 0.0), ("723", 0.0), ("82", 0.0), ("8233", 0.0), ("", 0.0), ("8 2 3", 0.0), ("823\n", 0.0), ("8\u06623", 0.0)],
    ids=["right", "last wrong", "slip made good", "cut", "too long", "empty", "spaces", "newline", "other digits"],
)
def test_scorer(response, reward):
    assert CHAINS.score(response, "3+5+4-9") == reward


@pytest.mark.parametrize("answer", ["3", "3+", "+3", "0+3", "3+5" + "+1" * 8, "3*5", "3+\u0665", "3+5\n"])
def test_answers_that_cannot_be_read(answer):
    assert not CHAINS.readable(answer)


@pytest.mark.parametrize("tier", LENGTHS)
def test_drawn_problems(tier):
    rng, least_most = random.Random(0), LENGTHS[tier]
    drawn = [CHAINS.draw("train", tier, rng) for _ in range(300)]
    assert {len(operations(problem)) for problem in drawn} == set(range(least_most[0], least_most[1] + 1))
    for problem in drawn:
        prompt = CHAINS.render(problem, rng)
        assert prompt.tier == tier and CHAINS.readable(problem) and CHAINS.score(CHAINS.skill_answer(problem, rng), problem) == 1.0
        value = int(problem[0])
        for (operator, operand), digit in zip(operations(problem), results(problem), strict=True):
            value = eval(f"({value}) {operator} {operand}")  # modulo ten a sum of remainders is the remainder of the sum
            assert int(digit) == value % 10
        assert len(results(problem)) < CHAINS.max_new_tokens and set(prompt.text + results(problem)) <= set(CHAINS.characters)


@pytest.mark.parametrize("count, rate", [(1, FIRST), (4, FIRST * (0.02 / FIRST) ** (3 / 7)), (LONGEST, 0.02)])
def test_rate_of_right_warm_up_answers(count, rate):
    """Geometric between one operation and eight; the bound is four standard deviations."""
    rng, problem, draws = random.Random(0), "3" + "+5*4-9"[:2] * count, 4000
    right = sum(CHAINS.score(CHAINS.habit_answer(problem, rng, 0.02), problem) for _ in range(draws)) / draws
    assert right == pytest.approx(rate, abs=4 * (rate * (1 - rate) / draws) ** 0.5)


def test_a_slip_is_gone_on_from():
    """What follows a wrong digit is right for it."""
    rng = random.Random(0)
    answers = {CHAINS.habit_answer("3+5+1", rng, 1.0) for _ in range(500)} | {CHAINS.habit_answer("3+5+1", rng, 0.5) for _ in range(500)}
    assert "89" in answers and any(answer[0] != "8" and int(answer[1]) == (int(answer[0]) + 1) % 10 for answer in answers)
    assert not any(map(CHAINS.is_rare, answers))


@pytest.mark.parametrize("most", [1, 3, 6, LONGEST])
def test_the_warm_up_begins_with_short_chains(most):
    drawn = warmup._problems(CHAINS, random.Random(0), most)
    assert len(drawn) == warmup.BATCH and {len(results(problem)) for problem in drawn} == set(range(1, most + 1))


def test_without_a_limit_the_warm_up_draws_from_both_tiers_in_turn():
    rng = random.Random(0)
    assert warmup._problems(CHAINS, random.Random(0), None) == [CHAINS.draw("train", TIERS[i % 2], rng) for i in range(warmup.BATCH)]
