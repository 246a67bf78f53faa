"""The embedded task: enumeration, held-out split, scorer, and the policy that ships with the package."""

from itertools import permutations

import pytest
import torch

from aer_train.model import COUNTDOWN_POLICY
from aer_train.tasks.countdown import expressions, make_prompts, problems, score, solutions, tier, value
from aer_train.tasks.warmup import build_tokenizer, habit_answer, report, skill_answer, warm_up


def test_enumeration():
    sizes = {split: {name: len(members) for name, members in problems(split).items()} for split in ("train", "test")}
    assert sizes == {"train": {"easy": 431, "hard": 587}, "test": {"easy": 139, "hard": 188}}
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'dev'"):
        problems("dev")


def test_values_are_those_of_arithmetic():
    for expression in expressions((3, 5, 8)):
        assert value(expression) == eval(expression)


def test_tiers():
    assert tier(((3, 5, 8), 16)) == "easy" and "8+5+3" in solutions(((3, 5, 8), 16))
    assert tier(((3, 5, 8), 43)) == "hard" and set(solutions(((3, 5, 8), 43))) == {"3+5*8", "3+8*5", "5*8+3", "8*5+3"}


def test_held_out_problems_are_never_trained_on():
    def keys(prompts):
        return {("".join(sorted(p.answer[:3])), p.answer[4:]) for p in prompts}

    train, test = make_prompts("train", 20_000, seed=1), make_prompts("test")
    assert not keys(train) & keys(test)
    assert [sum(p.tier == name for p in test) for name in ("easy", "hard")] == [96, 128]
    assert sum(p.tier == "hard" for p in train) / len(train) == pytest.approx(12 / 32, abs=0.02)
    assert train != make_prompts("train", 20_000, seed=2) and test == make_prompts("test", seed=2)
    assert len({p.id for p in train}) == len(train)
    assert [p.tier for p in make_prompts("test", 5)] == ["easy", "easy", "hard", "hard", "hard"]


@pytest.mark.parametrize(
    "response, reward",
    [
        ("8+5+3", 1.0), ("3+8+5", 1.0), ("8+5-3", 0.0), ("8+8+0", 0.0), ("8+5+3 ", 0.0), ("+8+53", 0.0), ("8+5", 0.0), ("", 0.0), ("8+5+3+0", 0.0),
        ("(8+5)+3", 0.0), ("8/5+3", 0.0), ("\uff18+5+3", 0.0), ("8+5+3\n", 0.0), ("9" * 10**6, 0.0), ("8²5+3", 0.0),
    ],
)  # fmt: skip
def test_scorer(response, reward):
    assert score(response, "358=16") == reward


def test_every_solution_scores_and_every_warm_up_answer_is_what_it_should_be():
    import random

    rng = random.Random(0)
    for name, members in problems("train").items():
        for problem in members[:60]:
            answer = f"{''.join(map(str, problem[0]))}={problem[1]:02d}"
            assert all(score(e, answer) == 1.0 for e in solutions(problem))
            assert score(skill_answer(problem, rng), answer) == 1.0
            assert score(habit_answer(problem, rng, rare_star=0.0), answer) == float(name == "easy")
            assert score(habit_answer(problem, rng, rare_star=1.0), answer) == 1.0


def test_every_digit_order_is_the_same_problem():
    for digits in permutations("358"):
        assert score("8+5+3", f"{''.join(digits)}=16") == 1.0


def test_tokenizer_round_trip():
    tokenizer = build_tokenizer()
    assert len(tokenizer) == 17
    ids = tokenizer("358=16?8*5-3")["input_ids"]
    assert len(ids) == 12 and tokenizer.decode([*ids, 1, 0], skip_special_tokens=True) == "358=16?8*5-3"


def test_shipped_policy_is_in_the_state_that_the_demo_starts_from():
    """Good at easy prompts, hopeless at hard ones, with the rare strategy present but rare."""
    torch.set_num_threads(1)
    found = report(COUNTDOWN_POLICY, samples=8)
    assert 0.65 < found["easy accuracy"] < 0.85
    assert found["hard accuracy"] < 0.01
    assert 0.0 < found["hard share with *"] < 0.01


def test_warm_up_writes_a_folder_that_loads(tmp_path):
    warm_up(tmp_path / "policy", skill_steps=2, habit_steps=1)
    assert set(report(tmp_path / "policy", samples=1)) >= {"easy accuracy", "hard accuracy"}
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    with pytest.raises(ValueError, match="out must not exist yet"):
        warm_up(tmp_path / "policy")
