"""Hints name the option to change and its value, wait until a cause has lasted, and come again only after a recovery."""

import dataclasses
import re
from typing import Any

import pytest

from aer_kernels import EntropyControlConfig
from aer_kernels.methods import MAIClipConfig, PositiveAdvantageConfig, RepoRConfig, StareConfig, TokenTargetsConfig, method_class
from aer_train.config.tree import OptimConfig, TrainConfig
from aer_train.monitor.console import Console
from aer_train.monitor.hints import CAUSES, ENOUGH, URGENT, WINDOW, hints_of
from aer_train.monitor.options import Options

GOOD = {"reward/mean": 0.5, "reward/zero_variance_frac": 0.2, "tokens/truncated_frac": 0.1, "outcome/correct": 0.5, "outcome/wrong": 0.5,
        "entropy/smoothed": 1.0, "entropy/initial": 1.0, "entropy/target": 0.85, "entropy/coef": 0.1, "entropy/saturated": 0,
        "policy/loss": -0.01, "optim/grad_norm": 0.7, "rollout/mismatch_mean": 0.01,
        "time_share/rollout": 0.8, "time_share/verify_wait": 0.1}  # fmt: skip


def options(kind="aer", updates=1, **entropy):
    config = TrainConfig(method=EntropyControlConfig(kind=kind, **entropy), optim=OptimConfig(updates_per_step=updates))
    return dataclasses.asdict(config)


def rows(*changes):
    return [{"step": step, **GOOD, **change} for step, change in enumerate(changes, 1)]


CASES = [
    ("off", {"entropy/smoothed": 0.2, "entropy/target": None}, "collapse", "method.kind (now off)"),
    ("fixed", {"entropy/smoothed": 0.2}, "collapse", "method.coef (now 0.0)"),
    ("aer", {"entropy/smoothed": 0.4}, "collapse", "method.kp (now its default)"),
    ("bang_bang", {"entropy/smoothed": 0.4}, "collapse", "method.step (now 0.005)"),
    ("integral", {"entropy/smoothed": 0.4}, "collapse", "method.ki (now its default)"),
    ("off", {"entropy/smoothed": 2.1, "entropy/target": None, "entropy/coef": 0.0}, "explosion", "optim.lr (now 1e-06)"),
    ("fixed", {"entropy/smoothed": 2.1}, "explosion", "method.coef (now 0.0)"),
    ("aer", {"entropy/smoothed": 1.6}, "explosion", "method.max_coef (now 0.6)"),
    ("aer", {"entropy/smoothed": 0.8, "entropy/saturated": 1}, "saturated", "method.tau (now 0.85)"),
    ("aer", {"reward/zero_variance_frac": 1.0, "reward/mean": 0.0}, "zero_variance", "rollout.group_size (now 8)"),
    (
        "aer",
        {"reward/zero_variance_frac": 1.0, "reward/mean": 1.0},
        "zero_variance",
        "harder prompts than data.train (now builtin:countdown)",
    ),
    (
        "aer",
        {"reward/zero_variance_frac": 1.0, "reward/mean": 0.5},
        "zero_variance",
        "set rollout.refill (now no_signal) to zero_variance and raise rollout.refill_rounds (now 0)",
    ),
    ("aer", {"tokens/truncated_frac": 0.97}, "truncated", "ended: raise rollout.max_new_tokens (now 512)"),
    ("aer", {"tokens/truncated_frac": 1.0, "tokens/cut_answered_frac": 0.2}, "truncated", "name what follows it in rollout.stop (now ())"),
    (
        "aer",
        {"tokens/truncated_frac": 0.97, "tokens/cut_answered_frac": 0.9},
        "truncated",
        "90% of those after an answer, behind which they went on: name what follows an answer in rollout.stop",
    ),
    ("aer", {"policy/loss": 1e-9}, "loss_is_zero", "optim.updates_per_step (now 1)"),
    ("aer", {"outcome/timeout": 0.1, "outcome/crash": 0.02}, "verifier", "reward.timeout (now 5.0)"),
    ("aer", {"reward/failed/math": 0.0, "reward/failed/judge": 0.2}, "verifier", "20% of the calls of judge"),
    ("aer", {"outcome/no_answer": 0.8}, "no_answer", "data.template (now '{problem}')"),
    ("aer", {"rollout/mismatch_mean": 0.2}, "mismatch", "rollout.backend (now hf)"),
    ("aer", {"time_share/verify_wait": 0.4}, "waiting", "reward.workers (now 2)"),
    ("aer", {"time_share/rollout": 0.9}, "sampling", "rollout.batch_size (now its default)"),
]


@pytest.mark.parametrize("kind, change, cause, named", CASES, ids=[f"{cause}-{kind}" for kind, _, cause, _ in CASES])
def test_each_cause_is_told_alone_and_names_an_option_and_its_value(kind, change, cause, named):
    found = hints_of(rows(*[change] * 10), options(kind))
    assert [(hint.cause, hint.step) for hint in found] == [(cause, ENOUGH)]
    assert named in found[0].text


LOW = {"entropy/smoothed": 0.8, "entropy/target": 0.85, "entropy/coef": None}
MOVED = [
    (StareConfig(), {"entropy/saturated": 1}, "saturated", "the surprising weight is at its bound and entropy, 0.800 nats, still below its target of 0.850: "
        "raise method.most (now 1.5), or lower method.target (now 0.3)"),
    (PositiveAdvantageConfig(), {"entropy/saturated": 1}, "saturated", "the positive weight is at its bound and entropy, 0.800 nats, still below its target of "
        "0.850: lower method.target (now 0.2)"),
    (RepoRConfig(), {"entropy/saturated": 1, "entropy/smoothed": 0.9}, "saturated", "still above its target of 0.850: raise method.most (now 0.05), or raise "
        "method.tau (now 1.0)"),
    (MAIClipConfig(), {"entropy/smoothed": 0.4}, "collapse", "entropy collapsed to 0.400 nats, 40% of its start: raise method.step (now 0.25), or lower optim.lr"),
    (MAIClipConfig(), {"entropy/smoothed": 0.4, "entropy/saturated": 1}, "collapse", "with the clip shift at its bound: raise method.most (now 2.5), or lower"),
    (RepoRConfig(), {"entropy/smoothed": 0.4}, "collapse", "of its start: lower optim.lr (now 1e-06)"),
    (StareConfig(), {"entropy/smoothed": 1.6}, "explosion", "without an entropy bonus: lower optim.lr"),
    (method_class("steer+mai_clip").Config(), {"entropy/saturated": 1}, "saturated", "the clip shift is at its bound and entropy, 0.800 nats, still below "
        "its target of 0.850: raise method.mai_clip.most (now 2.5), or lower method.mai_clip.target (now 0.3)"),
    (TokenTargetsConfig(), {"entropy/saturated": 1}, "saturated", "the coef is at its bound and entropy, 0.800 of the first policy's, still below its target of "
        "0.850: raise method.max_coef (now 0.6), or lower method.tau (now 0.85)"),
]  # fmt: skip


@pytest.mark.parametrize(
    "method, change, cause, text", MOVED, ids=[f"{cause}-{method.kind}-{i}" for i, (method, _, cause, _) in enumerate(MOVED)]
)
def test_whatever_a_method_moves_names_its_own_options(method, change, cause, text):
    config = dataclasses.asdict(TrainConfig(method=method))
    found = {hint.cause: hint.text for hint in hints_of(rows(*[LOW | change] * 10), config)}
    assert text in found[cause] and set(found) <= {cause, "saturated"}
    for name in re.findall(r"\b(method[.a-z_]+) \(now", found[cause]):
        assert Options(config).value(name) is not None, name


FAR = {"entropy/coef": 0.0, "entropy/initial": 4.3, "entropy/target": 5.2, "entropy/smoothed": 7.0, "entropy/controlled": 9.9}


@pytest.mark.parametrize(
    ("change", "settings", "named"),
    [
        ({}, {"tau": 1.2}, ["optim.lr (now 1e-06)", "method.tau (now 1.2) below 1", "method.surplus (now its default) to 1"]),
        ({}, {"tau": 1.2, "surplus": 1.0}, ["optim.lr", "method.tau"]),
        ({}, {"tau": 0.4, "surplus": 1.0}, ["optim.lr", "token_targets in place of aer in method.kind (now aer)"]),
        ({"entropy/target": 2.1, "entropy/controlled": 3.5}, {"tau": 1.2, "tau_end": 0.4, "updates": 9}, ["optim.lr", "method.tau"]),
        ({"entropy/coef": 0.01}, {"min_coef": 0.01}, ["optim.lr"]),
    ],
)
def test_entropy_far_above_its_target_is_told_at_once(change, settings, named):
    """A coefficient at its lower bound has done what it can, and a policy that becomes noise does not come back."""
    found = [hint for hint in hints_of(rows({}, {}, *[FAR | change] * 6), options(**settings)) if hint.step <= 5]
    assert [(hint.cause, hint.step) for hint in found] == [("out_of_reach", 4)]
    assert all(name in found[0].text for name in named) and found[0].text.count("(now") >= len(named)
    assert hints_of(rows({}, FAR | change, {}, {}), options(**settings)) == [], "one step is noise"
    alone = [FAR | change | {"entropy/coef": 0.2}] * 3
    assert hints_of(rows(*alone), options(**settings)) == [], "a coefficient above its bound can still fall"


ABOVE = {"entropy/coef": -0.1, "entropy/initial": 1.0, "entropy/target": 0.85, "entropy/smoothed": 2.0, "entropy/controlled": 2.4}


def together(name: str, part: Any) -> Any:
    return method_class(f"steer+{name}").Config(**{name: part})


@pytest.mark.parametrize("prefix, several", [("method", False), ("method.token_targets", True)])
def test_a_coefficient_that_may_be_negative_can_be_given_more_room(prefix, several):
    """At its bound; and above it, where a smaller largest coefficient would do nothing."""
    method = TokenTargetsConfig(min_coef=-0.1, tau=1.2)
    config = dataclasses.asdict(TrainConfig(method=together("token_targets", method) if several else method))
    found = {hint.cause: hint.text for hint in hints_of(rows(*[ABOVE] * 6), config)}
    named = f"lower {prefix}.min_coef (now -0.1), or lower optim.lr (now 1e-06), or set {prefix}.tau (now 1.2) below 1"
    assert set(found) == {"out_of_reach"} and found["out_of_reach"].endswith(named)
    found = {hint.cause: hint.text for hint in hints_of(rows(*[ABOVE | {"entropy/coef": -0.05}] * 6), config)}
    assert set(found) == {"explosion"} and found["explosion"].endswith(
        f"the coefficient at -0.050: raise {prefix}.kp (now 0.5), or lower optim.lr (now 1e-06)"
    )


def test_another_method_is_named_by_the_option_that_holds_all_of_them():
    part = method_class("aer").Config(surplus=1.0)
    config = dataclasses.asdict(TrainConfig(method=together("aer", part)))
    (hint,) = (hint for hint in hints_of(rows(*[ABOVE | {"entropy/coef": 0.0}] * 6), config) if hint.cause == "out_of_reach")
    assert "in place of aer in method.kind (now steer+aer)" in hint.text


@pytest.mark.parametrize("several", [False, True])
def test_what_is_out_of_reach_names_options_that_its_method_has(several):
    for name in ("aer", "token_targets", "aent"):
        part = method_class(name).Config(**({"target": 1.0} if name == "aent" else {}))
        config = dataclasses.asdict(TrainConfig(method=together(name, part) if several else part))
        found = {hint.cause: hint.text for hint in hints_of(rows(*[ABOVE | {"entropy/coef": -9.0}] * 6), config)}
        named = re.findall(r"\b(method[.a-z_]+) \(now", found.get("out_of_reach", ""))
        for option in named:
            section, _, leaf = option.rpartition(".")
            assert leaf in Options(config).value(section), option


def test_every_option_that_a_hint_names_exists():
    leaves = {f"{section}.{name}" for section, part in options().items() for name in part}
    for kind, change, *_ in CASES:
        for hint in hints_of(rows(*[change] * WINDOW), options(kind)):
            named = re.findall(r"\b((?:model|data|rollout|reward|objective|method|optim|eval|run)\.[a-z_]+)", hint.text)
            assert named and set(named) <= leaves, hint.text


FALLEN = {"reward/mean": 0.2}


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("off", r"lower optim.lr \(now 1e-06\)$"),
        ("aer", r"lower optim.lr \(now 1e-06\), and see whether it falls with method.kind \(now aer\) set to off, too; if not, .* harm$"),
    ],
)
def test_what_was_right_at_first_and_is_no_more(kind, remedy):
    (hint,) = hints_of(rows({}, {}, {}, {}, *[FALLEN] * 8), options(kind))
    assert (hint.step, hint.cause) == (8, "unlearned")
    assert re.fullmatch(r"the share of right responses fell to 0.20, from 0.50 at first: " + remedy, hint.text)


def test_a_fall_is_one_of_the_verified_rewards_and_from_something():
    """Not of a reward whose other parts fall, nor where next to nothing was right."""
    assert hints_of(rows(*[{"reward/accuracy": 0.5}] * 4, *[FALLEN | {"reward/accuracy": 0.5}] * 8), options()) == []
    assert hints_of(rows(*[{"reward/mean": 0.08}] * 4, *[{"reward/mean": 0.01}] * 8), options()) == []
    assert hints_of(rows({}, {}, {}, *[FALLEN, {}] * 8), options()) == []


@pytest.mark.parametrize("change", [{"drop_solved": 0.9}, {"target": 0.5}])
def test_prompts_that_grow_harder_are_no_fall(change):
    assert hints_of(rows(*[{}] * 4, *[FALLEN] * 8), options() | {"difficulty": change}) == []


def test_a_good_run_is_silent():
    assert hints_of(rows(*[{}] * 50), options()) == []
    lower_target = {"entropy/smoothed": 0.2, "entropy/target": 0.21}  # 20 % of the start, as it was asked for
    assert hints_of(rows(*[lower_target] * 50), options()) == []
    start_above_target = {"entropy/target": 0.4, "entropy/coef": 0.0, "entropy/controlled": 1.1}  # tau = 0.4
    assert hints_of(rows(*[start_above_target] * 50), options()) == []
    small_loss_of_several_updates = {"policy/loss": 1e-9}
    assert hints_of(rows(*[small_loss_of_several_updates] * 50), options(updates=2)) == []


def test_single_noisy_steps_say_nothing():
    bad = {"tokens/truncated_frac": 1.0}
    assert hints_of(rows(bad, {}, {}, bad, bad, {}, bad, {}, bad), options()) == []


def test_once_for_a_cause_and_again_after_a_recovery():
    bad = {"tokens/truncated_frac": 1.0}
    flicker = [bad] * 20 + [{}] * (WINDOW - 1) + [bad] * 20
    assert [hint.step for hint in hints_of(rows(*flicker), options())] == [ENOUGH]
    recovered = [bad] * 20 + [{}] * WINDOW + [bad] * 20
    assert [hint.step for hint in hints_of(rows(*recovered), options())] == [ENOUGH, 20 + WINDOW + ENOUGH]


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


def test_entropy_that_nothing_holds_may_fall():
    """AER that waits, or has decided to add nothing: the option that says so is named. That entropy rises is told all the same."""
    waiting = [{"entropy/smoothed": entropy, "entropy/target": None, "entropy/coef": 0.0} for entropy in [0.01] * 20 + [3.0] * 20]
    found = hints_of(rows(*waiting), options(patience=16))
    assert [(hint.step, hint.cause) for hint in found] == [(15 + ENOUGH, "stands_by"), (20 + ENOUGH, "explosion")]
    assert found[0].text.endswith("still were by step 16: method.patience (now 16)")
    assert hints_of(rows(*waiting[:16], *[{}] * 20), options(patience=16)) == []
    assert {hint.cause for hint in hints_of(rows(*waiting[:20]), options("off", patience=16))} == {"collapse"}


def test_causes_are_covered():
    assert {cause for _, _, cause, _ in CASES} | {*URGENT, "unlearned", "stands_by"} == set(CAUSES)
