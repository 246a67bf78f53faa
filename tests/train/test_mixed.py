"""Mixed: two kinds of prompts, each scored by its own rule."""

import random
from itertools import combinations_with_replacement

import pytest

from aer_train.tasks import task
from aer_train.tasks.mixed import SLIP, sortings

MIXED = task("mixed")


@pytest.mark.parametrize(
    "response, answer, reward",
    [
        ("85531", "35851", 1.0), ("85351", "35851", 0.0), ("8553", "35851", 0.0), ("855311", "35851", 0.0), ("", "35851", 0.0),
        ("4*9-1-8", "4189=27", 1.0), ("4+9+8+1", "4189=27", 0.0), ("9841", "4189=27", 0.0), ("98417", "4189=27", 0.0),
    ],
)  # fmt: skip
def test_scorer(response, answer, reward):
    assert MIXED.score(response, answer) == reward


@pytest.mark.parametrize(
    "answer, readable",
    [("35851", True), ("3585", False), ("358510", False), ("3585a", False), ("4189=27", True), ("418=27", False), ("٣٥٨٥١", False)],
)
def test_readable(answer, readable):
    assert MIXED.readable(answer) is readable


def test_a_tier_is_a_kind():
    rng = random.Random(0)
    easy, hard = (MIXED.render(MIXED.draw("train", tier, rng), rng, "7/") for tier in ("easy", "hard"))
    assert (easy.tier, hard.tier) == ("easy", "hard")
    assert easy.text == f"{easy.answer}>?" and hard.text == f"{hard.answer}?" and easy.id == f"mixed/7/{easy.answer}"
    assert hard.id == f"mixed/7/{hard.answer}"


def test_what_the_warm_up_teaches():
    """The skill is right; the habit slips in half of the sortings by a swap of neighbours, and solves a hard prompt only by the rare strategy."""
    rng, slips = random.Random(0), 0
    for problem in rng.sample(sortings("train"), 400):
        prompt = MIXED.render(problem, rng)
        assert MIXED.score(MIXED.skill_answer(problem, rng), prompt.answer) == 1.0
        habit = MIXED.habit_answer(problem, rng, rare=1.0)
        different = [place for place in range(5) if habit[place] != problem[place]]
        assert sorted(habit) == sorted(problem) and (not different or different == [different[0], different[0] + 1])
        slips += len(different) > 0
    assert slips / 400 == pytest.approx(SLIP, abs=0.08)
    for _ in range(50):
        problem = MIXED.draw("train", "hard", rng)
        answer = MIXED.render(problem, rng).answer
        usual, rare = (MIXED.habit_answer(problem, rng, rare=share) for share in (0.0, 1.0))
        assert MIXED.score(usual, answer) == 0.0 and not MIXED.is_rare(usual)
        assert MIXED.score(rare, answer) == 1.0 and MIXED.is_rare(rare) and MIXED.score(MIXED.skill_answer(problem, rng), answer) == 1.0
        assert set(rare) <= set(MIXED.characters) and len(rare) < MIXED.max_new_tokens


def test_every_sorting_is_in_one_split():
    found = [digits for split in ("train", "validation", "test") for digits in sortings(split)]
    assert sorted(found) == sorted("".join(d) for d in combinations_with_replacement("987654321", 5))
