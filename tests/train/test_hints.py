"""Hints name the option to change and its value, wait until a cause has lasted, and come again only after a recovery."""

import dataclasses
import re

import pytest

from aer_kernels import EntropyControlConfig
from aer_train.config import OptimConfig, TrainConfig
from aer_train.console import Console
from aer_train.hints import CAUSES, HOLDS, WINDOW, hints_of

GOOD = {"reward/mean": 0.5, "reward/zero_variance_frac": 0.2, "tokens/truncated_frac": 0.1, "outcome/correct": 0.5, "outcome/wrong": 0.5,
        "entropy/smoothed": 1.0, "entropy/initial": 1.0, "entropy/target": 0.85, "entropy/coef": 0.1, "entropy/saturated": 0,
        "policy/loss": -0.01, "optim/grad_norm": 0.7, "rollout/mismatch_mean": 0.01,
        "time_share/rollout": 0.8, "time_share/verify_wait": 0.1}  # fmt: skip


def options(kind="aer", updates=1, **entropy):
    config = TrainConfig(entropy=EntropyControlConfig(kind=kind, **entropy), optim=OptimConfig(updates_per_step=updates))
    return dataclasses.asdict(config)


def rows(*changes):
    return [{"step": step, **GOOD, **change} for step, change in enumerate(changes, 1)]


CASES = [
    ("off", {"entropy/smoothed": 0.2, "entropy/target": None}, "collapse", "entropy.kind (now off)"),
    ("fixed", {"entropy/smoothed": 0.2}, "collapse", "entropy.coef (now 0.0)"),
    ("aer", {"entropy/smoothed": 0.4}, "collapse", "entropy.kp (now its default)"),
    ("bang_bang", {"entropy/smoothed": 0.4}, "collapse", "entropy.step (now 0.005)"),
    ("integral", {"entropy/smoothed": 0.4}, "collapse", "entropy.ki (now its default)"),
    ("off", {"entropy/smoothed": 2.1, "entropy/target": None, "entropy/coef": 0.0}, "explosion", "optim.lr (now 1e-06)"),
    ("fixed", {"entropy/smoothed": 2.1}, "explosion", "entropy.coef (now 0.0)"),
    ("aer", {"entropy/smoothed": 1.6}, "explosion", "entropy.max_coef (now 0.6)"),
    ("aer", {"entropy/smoothed": 1.6, "entropy/coef": 0.0}, "explosion", "entropy.surplus (now its default)"),
    ("aer", {"entropy/smoothed": 0.8, "entropy/saturated": 1}, "saturated", "entropy.tau (now 0.85)"),
    ("aer", {"reward/zero_variance_frac": 1.0, "reward/mean": 0.0}, "zero_variance", "rollout.group_size (now 8)"),
    (
        "aer",
        {"reward/zero_variance_frac": 1.0, "reward/mean": 1.0},
        "zero_variance",
        "harder prompts than data.train (now builtin:countdown)",
    ),
    ("aer", {"tokens/truncated_frac": 0.97}, "truncated", "rollout.max_new_tokens (now 512)"),
    ("aer", {"policy/loss": 1e-9}, "loss_is_zero", "optim.updates_per_step (now 1)"),
    ("aer", {"outcome/timeout": 0.1, "outcome/crash": 0.02}, "verifier", "reward.timeout (now 5.0)"),
    ("aer", {"outcome/no_answer": 0.8}, "no_answer", "data.template (now '{problem}')"),
    ("aer", {"rollout/mismatch_mean": 0.2}, "mismatch", "rollout.backend (now hf)"),
    ("aer", {"time_share/verify_wait": 0.4}, "waiting", "reward.workers (now 2)"),
    ("aer", {"time_share/rollout": 0.9}, "sampling", "rollout.batch_size (now 256)"),
]


@pytest.mark.parametrize("kind, change, cause, named", CASES, ids=[f"{cause}-{kind}" for kind, _, cause, _ in CASES])
def test_each_cause_is_told_alone_and_names_an_option_and_its_value(kind, change, cause, named):
    found = hints_of(rows(*[change] * 10), options(kind))
    assert [(hint.cause, hint.step) for hint in found] == [(cause, HOLDS)]
    assert named in found[0].text


def test_with_a_limit_for_each_prompt_an_explosion_has_another_cause():
    for coef, named in ((0.1, "entropy.max_coef (now 0.6)"), (0.0, "objective.clip_high (now 0.2)")):
        found = hints_of(rows(*[{"entropy/smoothed": 1.6, "entropy/coef": coef}] * 10), options(surplus=1.0))
        assert [hint.cause for hint in found] == ["explosion"] and named in found[0].text


def test_every_option_that_a_hint_names_exists():
    leaves = {f"{section}.{name}" for section, part in options().items() for name in part}
    for kind, change, *_ in CASES:
        for hint in hints_of(rows(*[change] * WINDOW), options(kind)):
            named = re.findall(r"\b((?:model|data|rollout|reward|objective|entropy|optim|eval|run)\.[a-z_]+)", hint.text)
            assert named and set(named) <= leaves, hint.text


def test_a_good_run_is_silent():
    assert hints_of(rows(*[{}] * 50), options()) == []
    lower_target = {"entropy/smoothed": 0.2, "entropy/target": 0.21}  # 20 % of the start, as it was asked for
    assert hints_of(rows(*[lower_target] * 50), options()) == []
    start_above_target = {"entropy/target": 0.4, "entropy/coef": 0.0}  # tau = 0.4
    assert hints_of(rows(*[start_above_target] * 50), options()) == []
    small_loss_of_several_updates = {"policy/loss": 1e-9}
    assert hints_of(rows(*[small_loss_of_several_updates] * 50), options(updates=2)) == []


def test_single_noisy_steps_say_nothing():
    bad = {"tokens/truncated_frac": 1.0}
    assert hints_of(rows(bad, {}, {}, bad, bad, {}, bad, {}, bad), options()) == []


def test_once_for_a_cause_and_again_after_a_recovery():
    bad = {"tokens/truncated_frac": 1.0}
    flicker = [bad] * 20 + [{}] * (WINDOW - 1) + [bad] * 20
    assert [hint.step for hint in hints_of(rows(*flicker), options())] == [HOLDS]
    recovered = [bad] * 20 + [{}] * WINDOW + [bad] * 20
    assert [hint.step for hint in hints_of(rows(*recovered), options())] == [HOLDS, 20 + WINDOW + HOLDS]


def test_rows_without_metrics_and_configurations_without_options():
    assert hints_of([{"step": step, "reward/mean": 0.5} for step in range(1, 9)], {}) == []
    assert hints_of([{"step": step, **dict.fromkeys(GOOD)} for step in range(1, 9)], options()) == []
    assert "rollout.max_new_tokens (now its default)" in hints_of(rows(*[{"tokens/truncated_frac": 1.0}] * 5), {})[0].text


def test_the_console_goes_on_after_a_resume_where_it_was(capsys):
    bad = rows(*[{"tokens/truncated_frac": 1.0, "perf/tokens_per_second": 1.0, "entropy/mean": 1.0}] * 8)
    fresh, resumed = Console(), Console()
    fresh.watch(TrainConfig())
    for row in bad[:6]:
        fresh.step(row)
    said = capsys.readouterr().out
    assert said.count("hint, step 4: 100% of the responses were cut") == 1
    resumed.watch(TrainConfig(), bad[:6])
    for row in bad[6:]:
        resumed.step(row)
    assert "hint" not in capsys.readouterr().out


def test_causes_are_covered():
    assert {cause for _, _, cause, _ in CASES} == set(CAUSES)
