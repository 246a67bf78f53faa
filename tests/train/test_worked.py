"""Worked: the grammar of its responses, the scorer, tiers and warm-up answers."""

import random
from itertools import combinations_with_replacement, permutations, product

import pytest

from aer_train.tasks import task
from aer_train.tasks.worked import chains, direct_answers, problems, results, worked

WORKED = task("worked")


def test_by_hand():
    assert results((3, "+", 5, "*", 8)) == (8, 64) and worked((3, "+", 5, "*", 8)) == "3+5=08,8;08*8=64"
    hard, easy = ((3, 5, 8), 64), ((3, 5, 8), 16)
    assert set(map(worked, chains(hard))) == {"3+5=08,8;08*8=64", "5+3=08,8;08*8=64"} and not direct_answers(hard)
    assert "8+5+3" in direct_answers(easy) and (8, "+", 5, "+", 3) in chains(easy)
    prompts = [WORKED.render(problem, random.Random(0), "7/") for problem in (hard, easy)]
    assert (
        [p.tier for p in prompts] == ["hard", "easy"]
        and prompts[0].text.endswith("=64?")
        and sorted(prompts[0].text[:3]) == ["3", "5", "8"]
    )


@pytest.mark.parametrize(
    "response, answer, reward",
    [
        ("8+5+3", "358=16", 1.0), ("8+5+3", "358=17", 0.0), ("8+5=13,3;13+3=16", "358=16", 1.0), ("3+5=08,8;08*8=64", "358=64", 1.0),
        ("8*8=64", "358=64", 0.0), ("5*8+3", "358=43", 0.0), ("3+5=09,8;09*8=72", "358=72", 0.0), ("3+5=08,8;08*8=63", "358=63", 0.0),
        ("3+5=08,8;09*8=64", "358=64", 0.0), ("3+5=08,7;08*8=64", "358=64", 0.0), ("3+5=8,8;8*8=64", "358=64", 0.0), ("4+4=08,8;08*8=64", "358=64", 0.0),
        ("3-8=-5,5;-5*5=-25", "358=25", 0.0), ("3+5=08,8;08*8=64;", "358=64", 0.0), ("3+5=08,8;08*8=\u0666\u0664", "358=64", 0.0), ("", "358=64", 0.0),
        ("9" * 10**6, "358=64", 0.0), ("8+5+3\n", "358=16", 0.0),
    ],
)  # fmt: skip
def test_scorer(response, answer, reward):
    assert WORKED.score(response, answer) == reward


def test_tiers_and_warm_up_answers_are_what_they_should_be():
    """Every answer that the warm-up teaches scores as it should, checked by Python's own arithmetic."""
    rng = random.Random(0)
    for tier, members in problems("train").items():
        for problem in rng.sample(members, 80):
            prompt = WORKED.render(problem, rng)
            assert prompt.tier == tier
            assert all(eval(f"({a}{p}{b}){q}{c}") == problem[1] for a, p, b, q, c in chains(problem))
            assert all(WORKED.score(worked(chain), prompt.answer) == 1.0 for chain in chains(problem))
            assert WORKED.score(WORKED.skill_answer(problem, rng), prompt.answer) == 1.0
            usual, rare = (WORKED.habit_answer(problem, rng, rare=share) for share in (0.0, 1.0))
            assert WORKED.score(usual, prompt.answer) == float(tier == "easy") and not WORKED.is_rare(usual)
            assert WORKED.score(rare, prompt.answer) == 1.0 and WORKED.is_rare(rare)
            assert set(prompt.text + rare) <= set(WORKED.characters) and len(rare) == WORKED.max_new_tokens - 1


def test_enumeration():
    """All problems that a chain solves, counted with Python's own arithmetic; each in one split."""
    expected = set()
    for digits in combinations_with_replacement(range(1, 10), 3):
        for (a, b, c), (p, q) in product(permutations(digits), product("+-*", repeat=2)):
            first = eval(f"{a}{p}{b}")
            if 0 <= first <= 99 and 0 <= eval(f"{first}{q}{c}") <= 99:
                expected.add((digits, eval(f"{first}{q}{c}")))
    found = [problem for split in ("train", "validation", "test") for members in problems(split).values() for problem in members]
    assert set(found) == expected and len(found) == len(expected) == 1959
