"""Pass rates of prompts, and what follows from them: which prompts are drawn, and how many responses each gets."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aer_train.config.checks import check_config
from aer_train.config.tree import (
    DataConfig,
    DifficultyConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RewardConfig,
    RolloutConfig,
    TrainConfig,
)
from aer_train.data.difficulty import Difficulty, allotted
from aer_train.data.prompts import order_at
from aer_train.model import Policy, load_policy
from aer_train.report import write_report
from aer_train.rollout.hf import HFRollout
from aer_train.run import checkpoint
from aer_train.run.files import read_parquet
from aer_train.run.folder import read_metrics
from aer_train.step.advantage import group_advantages
from aer_train.step.credit import assign_credit
from aer_train.step.tokens import token_batch
from aer_train.step.update import update_policy
from aer_train.trainer import train
from aer_train.types import Batch, Group, Prompt, Sample, Verdict
from tests.train.same_run import assert_same_run, changed, stable_rows
from tests.train.worth import weighed

PROMPTS = [Prompt(str(i), f"p{i}", "") for i in range(10)]


def known(rates: dict[int, float], prompts: int = 10, last: int = 1, **options: Any) -> Difficulty:
    """Pass rates that were seen at step `last`."""
    found = Difficulty(DifficultyConfig(**options), PROMPTS[:prompts], 7)
    found.load_state_dict(
        {"prompts": found.state_dict()["prompts"], "places": list(rates), "rates": list(rates.values()), "last": [last] * len(rates)}
    )
    return found


def group(*rewards: float, judged: bool = True, size: int = 2) -> Group:
    outcome: Any = "wrong" if judged else "timeout"
    samples = [Sample(0, i, [1], [2] * size, [0.0] * size, "", True) for i in range(len(rewards))]
    return Group(Prompt("", "", ""), samples, [Verdict(outcome, reward, None, 0.0) for reward in rewards])


def test_off_is_the_plain_order_and_keeps_nothing() -> None:
    off = Difficulty(DifficultyConfig(), PROMPTS, 7)
    places, position = off.take(13, 5, 3)
    assert (places, position) == (order_at(10, 7, 13, 5), 18) and off.group_sizes(places, 8) == 8
    off.update(places, [group(1, 1)] * 5, 3)
    assert not off.on and off.metrics([8]) == {} and off.state_dict()["places"] == []


def test_a_pass_rate_is_a_moving_mean_of_accuracy() -> None:
    rates = known({}, drop_solved=1.0, decay=0.75)
    rates.update([3, 4, 5], [group(1, 0), group(0, 0), group(1, 1, judged=False)], 1)
    assert rates.rates[3] == 0.5 and rates.rates[4] == 0.0 and np.isnan(rates.rates[5]), "what nobody judged says nothing"
    rates.update([3], [group(1, 1, 1, 0.5)], 2)
    assert rates.rates[3] == pytest.approx(0.75 * 0.5 + 0.25 * 0.875) and rates.last.tolist()[3:6] == [2, 1, 0]
    weighted = Group(Prompt("", "", ""), [], [Verdict("wrong", 9.0, None, 0.0, kind_reward=0.25)])
    rates.update([4], [replace(weighted, samples=group(1).samples)], 3)
    assert rates.rates[4] == pytest.approx(0.25 * 0.25), "accuracy, not the weighted reward"


def test_solved_prompts_are_passed_over_in_the_plain_order() -> None:
    plain = order_at(10, 7, 0, 30)
    solved = {plain[0]: 1.0, plain[2]: 0.9, plain[3]: 0.89}
    rates = known(solved, drop_solved=0.9)
    places, position = rates.take(0, 3, 2)
    assert places == [plain[1], plain[3], plain[4]] and position == 5 and rates.skipped == 2
    assert rates.take(5, 5, 3) == (plain[5:10], 10)
    assert known(solved, drop_solved=0.9, recheck=4).take(0, 3, 4)[0] == [plain[1], plain[3], plain[4]]
    assert known(solved, drop_solved=0.9, recheck=4).take(0, 3, 5)[0] == plain[:3], "seen at step 1, 4 steps ago"


def test_a_step_keeps_its_size_when_too_few_are_unsolved() -> None:
    plain = order_at(10, 7, 0, 30)
    rates = known({place: float(place != plain[8]) for place in range(10)}, drop_solved=1.0)
    assert rates.take(0, 3, 2) == ([plain[8], *plain[10:12]], 12)


def test_prompts_are_drawn_near_the_target() -> None:
    """The share of first draws follows the weights, new prompts count as on target, and a draw is a function of seed, step and part."""
    rates = known({0: 0.5, 1: 0.75, 2: 1.0, 3: 0.0}, prompts=5, target=0.5, width=0.25)
    first = Counter(rates.take(0, 1, step)[0][0] for step in range(4000))
    weights = np.array([1.0, np.exp(-0.5), np.exp(-2.0), np.exp(-2.0), 1.0])
    expected = weights / weights.sum()
    assert all(abs(first[place] / 4000 - expected[place]) < 4 * np.sqrt(expected[place] / 4000) for place in range(5))
    assert sorted(rates.take(0, 5, 1)[0]) == list(range(5)) and rates.take(0, 3, 1) == rates.take(0, 3, 1)
    assert rates.take(0, 5, 1)[0] != rates.take(0, 5, 1, part=1)[0] and set(rates.take(0, 5, 1, skip=[0, 1])[0]) == {2, 3, 4}
    both = known({0: 1.0, 1: 0.5}, prompts=3, target=1.0, drop_solved=1.0)
    assert all(both.take(0, 3, step)[0][-1] == 0 for step in range(50)), "a solved prompt comes last, however near"


@pytest.mark.parametrize(
    ("shares", "total", "least", "expected"),
    [
        ([1.0, 1.0, 1.0], 24, 2, [8, 8, 8]),
        ([2.0, 1.0, 1.0], 24, 2, [12, 6, 6]),
        ([4.0, 1.0, 1.0, 1.0], 16, 2, [9, 3, 2, 2]),
        ([9.0, 1.0, 1.0], 12, 3, [6, 3, 3]),
        ([1.7, 1.7, 1.7], 24, 2, [8, 8, 8]),
    ],
)
def test_responses_are_shared_out(shares: list[float], total: int, least: int, expected: list[int]) -> None:
    assert allotted(shares, total, least) == expected


def test_every_allotment_adds_up() -> None:
    draw = np.random.default_rng(0)
    for _ in range(500):
        count, least = int(draw.integers(1, 20)), int(draw.integers(2, 5))
        shares, total = draw.choice([1.0, 3.3], count).tolist(), count * int(draw.integers(least, 12))
        sizes = allotted(shares, total, least)
        assert sum(sizes) == total and min(sizes) >= least
        large, small = ([size for size, share in zip(sizes, shares, strict=True) if share == kind] for kind in (3.3, 1.0))
        assert not large or not small or min(large) >= max(small)
        assert all(not sizes or max(sizes) - min(sizes) <= 1 for sizes in (large, small)), "the same share, the same size"


def test_unsolved_prompts_get_larger_groups() -> None:
    rates = known({0: 0.0, 1: 0.04, 2: 0.05, 3: 1.0}, boost=3.0)
    assert rates.group_sizes([0, 1, 2, 3, 4], 8) == [13, 13, 5, 5, 4], "a new prompt is not known to be unsolved"
    assert rates.group_sizes([0, 1], 8) == [8, 8] and rates.group_sizes([3, 4], 8) == [8, 8]


def test_state_comes_back_and_fits_its_data_only() -> None:
    rates = known({3: 0.1, 4: 1 / 3}, drop_solved=0.5)
    state = json.loads(json.dumps(rates.state_dict()))
    other = Difficulty(rates.config, PROMPTS, 7)
    other.load_state_dict(state)
    assert other.state_dict() == rates.state_dict() and np.array_equal(other.rates, rates.rates, equal_nan=True)
    with pytest.raises(ValueError, match=r"data\.train must give the prompts whose pass rates were kept, got 10 others"):
        Difficulty(rates.config, [*PROMPTS[:9], Prompt("9", "another", "")], 7).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_solved": 0.0}, r"difficulty.drop_solved must be in \(0, 1\] or None, got 0.0"),
        ({"recheck": 3}, "difficulty.recheck must be 0 without difficulty.drop_solved, got 3"),
        ({"target": 1.5}, r"difficulty.target must be in \[0, 1\] or None, got 1.5"),
        ({"width": 0.0}, "difficulty.width must be > 0, got 0.0"),
        ({"boost": 0.5}, "difficulty.boost must be >= 1 and finite, got 0.5"),
        ({"unsolved": 0.0}, r"difficulty.unsolved must be in \(0, 1\], got 0.0"),
        ({"min_group": 9}, r"difficulty.min_group must be in \[2, rollout.group_size = 8\], got 9"),
        ({"decay": 1.0}, r"difficulty.decay must be in \[0, 1\), got 1.0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(TrainConfig(difficulty=DifficultyConfig(**options)))


def test_groups_of_two_sizes_are_not_refilled() -> None:
    config = TrainConfig(difficulty=DifficultyConfig(boost=2.0), rollout=RolloutConfig(refill_rounds=1))
    with pytest.raises(ValueError, match=r"rollout.refill_rounds must be 0 with difficulty\.boost"):
        check_config(config)


# groups of different sizes


@pytest.mark.parametrize("kind", ["group_std", "group_mean", "rloo"])
def test_every_group_has_the_advantages_that_it_has_alone(kind: Any) -> None:
    config = TrainConfig(objective=ObjectiveConfig(advantage=kind))
    groups = [group(1, 0), group(1, 1, 0, 0, 0), group(0, 1, 1), group(0.5, 0)]
    batch = assign_credit(groups, config, torch.zeros(12))
    alone = [value for one in groups for value in group_advantages(torch.tensor([one.rewards]), kind, 1e-6)[0].tolist()]
    assert batch.advantages == alone and batch.accuracy == pytest.approx([0.5, 0.4, 2 / 3, 0.25])
    tokens = token_batch(batch, ("test",))
    assert tokens.prompt.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3]
    assert tokens.per_prompt(torch.arange(12.0)).tolist() == [0.5, 4.0, 8.0, 10.5]


def test_shares_of_an_update_are_of_groups() -> None:
    groups = [group(1, 0), group(1, 1, 0, 0), group(0, 1, 1), group(1, 0)]
    batch = Batch(groups, [], [], [True] * 10 + [False], [])
    assert batch.shares(2) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]] and batch.shares(4)[3] == [9] and batch.shares(1)[0] == list(range(10))


def test_samples_of_two_sizes_are_those_of_one(policy: Policy) -> None:
    rollout, prompts = (
        HFRollout(policy, RolloutConfig(max_new_tokens=4)),
        [Prompt(str(i), text, "") for i, text in enumerate(["12=?", "7"])],
    )
    whole = {(s.prompt, s.index): s.tokens for s in rollout.generate(prompts, 5, (0,))}
    varied = rollout.generate(prompts, [2, 5], (0,))
    assert [(s.prompt, s.index) for s in varied] == [(0, 0), (0, 1), *((1, i) for i in range(5))]
    assert all(whole[s.prompt, s.index] == s.tokens for s in varied)


def test_how_responses_are_grouped_does_not_change_their_gradient(policy: Policy, model_folder: Path) -> None:
    """The same responses with the same advantages and coefficients, as groups of 2 and 6 and as two groups of 4: the same update."""
    config = TrainConfig(rollout=RolloutConfig(max_new_tokens=6), optim=OptimConfig(lr=1e-2, warmup_steps=0))
    samples = HFRollout(policy, config.rollout).generate([Prompt("0", "12=?", "")], 8, (0,))
    verdicts, worth = [Verdict("wrong", 0.0, None, 0.0)] * 8, [1.0, -1.0, 0.5, -0.5, 0.25, 0.0, -2.0, 2.0]
    found = []
    for sizes in ((2, 6), (4, 4)):
        groups = [Group(Prompt(str(i), "", ""), samples[i * sizes[0] :][: sizes[i]], verdicts[: sizes[i]]) for i in range(2)]
        fresh = load_policy(ModelConfig(name=str(model_folder)), torch.device("cpu"))
        batch = weighed(groups, worth, [1.0] * 8, scale=0.1)
        result = update_policy(fresh, torch.optim.AdamW(fresh.model.parameters()), batch, config, step=1)
        found.append((result.metrics, result.measured, [parameter.detach() for parameter in fresh.model.parameters()]))
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(a, b) for a, b in zip(found[0][2], found[1][2], strict=True))


# whole runs


@pytest.fixture
def config(config: TrainConfig) -> TrainConfig:
    return replace(config, data=DataConfig(limit=9), reward=RewardConfig(kind="tests.train.rewards.digit_share", workers=1))


def rates_of(run: Path) -> dict[str, Any] | None:
    """What the newest checkpoint keeps."""
    newest = checkpoint.latest(run)
    assert newest is not None
    path = newest / checkpoint.RATES
    return json.loads(path.read_text()) if path.exists() else None


WAYS: dict[str, dict[str, Any]] = {
    "drop": {"drop_solved": 0.6, "recheck": 2},
    "target": {"target": 0.5},
    "boost": {"boost": 2.0, "unsolved": 0.9},
    "all": {"drop_solved": 1.0, "target": 0.8, "width": 0.1, "boost": 2.0, "unsolved": 0.95, "decay": 0.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_pass_rates_resume_exactly_and_decide(way: str, config: TrainConfig, tmp_path: Path) -> None:
    plain = stable_rows(train(changed(config, "run", out=str(tmp_path / "plain"))))
    config = replace(config, difficulty=DifficultyConfig(**WAYS[way]))
    whole = train(changed(config, "run", out=str(tmp_path / "whole")))
    train(changed(config, "run", steps=2))
    parts = train(config, resume=True)
    assert_same_run(whole, parts)
    rows = stable_rows(whole)
    assert rows[-1]["difficulty/seen_frac"] > 6 / 9 and any(
        row["reward/mean"] != other["reward/mean"] for row, other in zip(rows, plain, strict=True)
    )
    state, other = rates_of(whole), rates_of(parts)
    assert state is not None and state == other
    assert len(state["places"]) == round(9 * rows[-1]["difficulty/seen_frac"]) and sum(state["rates"]) / len(
        state["rates"]
    ) == pytest.approx(rows[-1]["difficulty/pass_rate"])
    samples = [read_parquet(whole / "samples" / f"step_{step:06d}.parquet") for step in range(1, 5)]
    assert all(len(drawn) == 24 for drawn in samples), "the same total"
    assert (max(row["difficulty/group_max"] for row in rows) > 4) == ("boost" in WAYS[way])
    if "target" in WAYS[way]:  # else a prompt may come twice in a step, at the end of an epoch
        for row, drawn in zip(rows, samples, strict=True):
            sizes = Counter(sample["prompt_id"] for sample in drawn).values()
            assert (row["difficulty/group_min"], row["difficulty/group_max"]) == (min(sizes), max(sizes)) and len(sizes) == 6
    if way == "drop":
        assert sum(row["difficulty/skipped"] for row in rows) > 0
    page = write_report([whole], tmp_path / "report").read_text()
    assert "pass rate of the prompts seen" in page and ("largest group" in page) == ("boost" in WAYS[way])


def test_off_leaves_no_trace(config: TrainConfig) -> None:
    run = train(changed(config, "run", steps=1))
    assert rates_of(run) is None and not any(name.startswith("difficulty/") for name in read_metrics(run)[0])


@pytest.mark.slow
def test_it_can_be_turned_on_and_off_at_a_resume(config: TrainConfig) -> None:
    train(changed(config, "run", steps=1))
    on = replace(config, difficulty=DifficultyConfig(target=0.5))
    train(changed(on, "run", steps=2), resume=True)
    assert len((rates_of(Path(config.run.out)) or {})["places"]) == 6, "rates are kept from then on"
    train(changed(config, "run", steps=3), resume=True)
    assert rates_of(Path(config.run.out)) is None


def test_there_must_be_prompts_to_choose_from(config: TrainConfig) -> None:
    few = replace(changed(config, "data", limit=5), difficulty=DifficultyConfig(target=0.5))
    with pytest.raises(ValueError, match=r"optim.prompts_per_step must be <= 5, the prompts to choose from, got 6"):
        train(few)
