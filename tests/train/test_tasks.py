"""What holds for every embedded task: splits, prompts, the way to them by name, warm-up."""

import random
import re
from contextlib import nullcontext

import pytest

from aer_train.tasks import TASKS, builtin_prompts, check_rule, task
from aer_train.tasks.prompts import EVALUATION, make_prompts, split_of
from aer_train.tasks.warmup import SIZES, build_model, build_tokenizer, report, warm_up
from aer_train.verify import Verifier

every_task = pytest.mark.parametrize("chosen", TASKS.values(), ids=TASKS)


def problem_of(prompt):
    """What identifies the problem behind a prompt, in whatever order it is shown."""
    digits = re.match(r"\d+", prompt.text).group()
    return "".join(sorted(digits)) + prompt.text[len(digits) :]


@pytest.mark.slow
@every_task
def test_held_out_problems_are_never_trained_on(chosen):
    train = {problem_of(p) for p in make_prompts(chosen, "train", 5000, seed=1)}
    held_out = {split: make_prompts(chosen, split) for split in ("validation", "test")}
    for split, prompts in held_out.items():
        names = {problem_of(p) for p in prompts}
        assert len(names) == len(prompts) and not names & train
        assert {tier: sum(p.tier == tier for p in prompts) for tier in ("easy", "hard")} == EVALUATION[split]
        assert prompts == make_prompts(chosen, split, seed=2)
    assert not {problem_of(p) for p in held_out["validation"]} & {problem_of(p) for p in held_out["test"]}


@every_task
def test_training_prompts(chosen):
    prompts = make_prompts(chosen, "train", 2000, seed=1)
    assert prompts == make_prompts(chosen, "train", 2000, seed=1) != make_prompts(chosen, "train", 2000, seed=2)
    assert len({p.id for p in prompts}) == len(prompts)
    assert sum(p.tier == "hard" for p in prompts) / len(prompts) == pytest.approx(12 / 32, abs=0.04)
    assert {p.tier for p in make_prompts(chosen, "train", 50, hard_share=1.0)} == {"hard"}
    assert [p.tier for p in make_prompts(chosen, "test", 5)] == ["easy", "easy", "hard", "hard", "hard"]
    for split in ("train", "validation", "test"):
        for tier in ("easy", "hard"):
            origin = "countdown4" if (chosen.name, tier) == ("mixed", "hard") else chosen.name
            assert split_of(origin, chosen.draw(split, tier, random.Random(3))) == split


@every_task
def test_by_name(chosen):
    assert task(chosen.name) is chosen
    assert builtin_prompts(f"builtin:{chosen.name}", "train", 9, 3) == make_prompts(chosen, "train", 9, 3)
    assert {p.tier for p in builtin_prompts(f"builtin:{chosen.name}:0", "train", 30, 3)} == {"easy"}
    with Verifier(kind=chosen.name, workers=1) as verifier:
        prompt = make_prompts(chosen, "test", 1)[0]
        assert verifier.unparseable([prompt.answer, "?"]) == [1]
        assert [v.outcome for v in verifier.score_many([("?", prompt.answer)])] == ["wrong"]


@pytest.mark.parametrize(
    "source, split, message",
    [
        ("builtin:chess", "train", "task must be one of countdown, countdown4, worked, mixed, chains, got 'chess'"),
        ("builtin:countdown:many", "train", "share of hard prompts must be a number, got 'many' in builtin:countdown:many"),
        ("builtin:countdown:1.5", "train", r"hard_share must be in \[0, 1\], got 1.5"),
        ("builtin:countdown", "dev", "split must be one of test, validation, train, got 'dev'"),
    ],
)
def test_bad_sources(source, split, message):
    with pytest.raises(ValueError, match=message):
        builtin_prompts(source, split, 3, 0)


@every_task
def test_tokenizer_round_trip(chosen):
    tokenizer = build_tokenizer(chosen.characters)
    prompt = make_prompts(chosen, "train", 1)[0].text
    ids = tokenizer(prompt)["input_ids"]
    assert len(ids) == len(prompt) and tokenizer.decode([*ids, 1, 0], skip_special_tokens=True) == prompt


@pytest.mark.slow
def test_warm_up_writes_a_folder_that_loads(tmp_path):
    """Worked: responses of different lengths."""
    warm_up(tmp_path / "policy", "worked", "small", steps=(2, 1))
    assert set(report(tmp_path / "policy", "worked", samples=1)) >= {"easy accuracy", "hard accuracy"}
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    with pytest.raises(ValueError, match="out must not exist yet"):
        warm_up(tmp_path / "policy")
    with pytest.raises(ValueError, match="size must be one of small, base, large, got 'huge'"):
        warm_up(tmp_path / "other", size="huge")


def test_sizes():
    counts = {size: sum(p.numel() for p in build_model(size, 25).parameters()) for size in SIZES}
    assert 0.13e6 < counts["small"] < 0.17e6 and 0.55e6 < counts["base"] < 0.65e6


@pytest.mark.parametrize(
    ("kind", "source", "fits"),
    [
        ("countdown", "builtin:countdown", True),
        ("countdown", "builtin:countdown:0.25", True),
        ("my_rewards.closeness", "builtin:countdown", True),
        ("math", "gsm8k_train.jsonl", True),
        ("math", "builtin:countdown", False),
        ("countdown", "builtin:countdown4", False),
        ("worked", "builtin:mixed:0.5", False),
    ],
)
def test_an_embedded_task_is_judged_by_its_own_rule(kind, source, fits):
    """By another one every answer is wrong, and a run would learn nothing without saying why."""
    with (
        nullcontext()
        if fits
        else pytest.raises(ValueError, match=f"reward.kind must be {source.split(':')[1]} for {source}, .*, got {kind}")
    ):
        check_rule(kind, source)
