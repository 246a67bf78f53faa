"""Countdown: enumeration, tiers, scorer, and the policy that ships with the package."""

import random
from itertools import permutations

import pytest
import torch

from aer_train.model import COUNTDOWN_POLICY
from aer_train.tasks import task
from aer_train.tasks.countdown import expressions, problems, solutions, tier, value
from aer_train.tasks.warmup import report

COUNTDOWN, COUNTDOWN4 = task("countdown"), task("countdown4")


@pytest.mark.slow
def test_enumeration():
    """1345 and 10,625 problems; every one is in one split, and its tier is that of the enumeration."""
    for chosen, count in ((COUNTDOWN, 1345), (COUNTDOWN4, 10_625)):
        splits = {split: problems(chosen, split) for split in ("train", "validation", "test")}
        everything = [problem for tiers in splits.values() for members in tiers.values() for problem in members]
        assert len(everything) == len(set(everything)) == count
        shares = {split: sum(map(len, tiers.values())) / count for split, tiers in splits.items()}
        assert shares == pytest.approx({"train": 0.65, "validation": 0.15, "test": 0.2}, abs=0.02)
        for name, members in splits["test"].items():
            assert all(tier(problem) == name for problem in members[:40])


@pytest.mark.parametrize("digits", [(3, 5, 8), (2, 2, 7), (1, 4, 6, 9)])
def test_values_are_those_of_arithmetic(digits):
    found = expressions(digits)
    assert all(value(expression) == eval(expression) for expression in found)
    assert len(found) == len(set(permutations(digits))) * 3 ** (len(digits) - 1)


def test_tiers():
    assert tier(((3, 5, 8), 16)) == "easy" and "8+5+3" in solutions(((3, 5, 8), 16))
    assert tier(((3, 5, 8), 43)) == "hard" and set(solutions(((3, 5, 8), 43))) == {"3+5*8", "3+8*5", "5*8+3", "8*5+3"}
    assert tier(((1, 2, 3, 4), 10)) == "easy" and tier(((1, 2, 3, 4), 24)) == "hard" and "1*2*3*4" in solutions(((1, 2, 3, 4), 24))


@pytest.mark.parametrize(
    "response, reward",
    [
        ("8+5+3", 1.0), ("3+8+5", 1.0), ("8+5-3", 0.0), ("8+8+0", 0.0), ("8+5+3 ", 0.0), ("+8+53", 0.0), ("8+5", 0.0), ("", 0.0), ("8+5+3+0", 0.0),
        ("(8+5)+3", 0.0), ("8/5+3", 0.0), ("\uff18+5+3", 0.0), ("8+5+3\n", 0.0), ("9" * 10**6, 0.0), ("8²5+3", 0.0),
    ],
)  # fmt: skip
def test_scorer(response, reward):
    assert COUNTDOWN.score(response, "358=16") == reward


def test_scorer_of_four_digits():
    assert COUNTDOWN4.score("1*2*3*4", "4321=24") == 1.0
    assert COUNTDOWN4.score("1+2+3*4", "4321=24") == COUNTDOWN4.score("4*3*2", "4321=24") == 0.0
    assert COUNTDOWN4.readable("4321=24") and not COUNTDOWN4.readable("432=24") and not COUNTDOWN4.readable("4321=2\u0664")


@pytest.mark.parametrize("chosen", [COUNTDOWN, COUNTDOWN4], ids=lambda chosen: chosen.name)
def test_every_solution_scores_and_every_warm_up_answer_is_what_it_should_be(chosen):
    rng = random.Random(0)
    for name, members in problems(chosen, "train").items():
        for problem in rng.sample(members, 60):
            answer = f"{''.join(map(str, problem[0]))}={problem[1]:02d}"
            assert all(chosen.score(e, answer) == 1.0 for e in solutions(problem))
            assert chosen.score(chosen.skill_answer(problem, rng), answer) == 1.0
            assert chosen.score(chosen.habit_answer(problem, rng, rare=0.0), answer) == float(name == "easy")
            assert chosen.score(chosen.habit_answer(problem, rng, rare=1.0), answer) == 1.0


def test_every_digit_order_is_the_same_problem():
    for digits in permutations("358"):
        assert COUNTDOWN.score("8+5+3", f"{''.join(digits)}=16") == 1.0


@pytest.mark.slow
def test_shipped_policy_is_in_the_state_that_the_demo_starts_from():
    """Good at easy prompts, hopeless at hard ones, with the rare strategy present but rare."""
    torch.set_num_threads(1)
    found = report(COUNTDOWN_POLICY, samples=8)
    assert 0.65 < found["easy accuracy"] < 0.9
    assert found["hard accuracy"] < 0.01
    assert 0.0 < found["hard share of the rare strategy"] < 0.01
