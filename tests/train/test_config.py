import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from aer_kernels import EntropyControlConfig
from aer_kernels.methods import method_class
from aer_train.config.checks import check_config
from aer_train.config.parse import base_config, flags, read_config
from aer_train.config.presets import PRESETS
from aer_train.config.rules.inert import INERT
from aer_train.config.tree import DataConfig, EvalConfig, ObjectiveConfig, OptimConfig, RolloutConfig, RunConfig, TrainConfig


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_a_file(name: str, tmp_path: Path) -> None:
    config = PRESETS[name]()
    check_config(config)
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    assert read_config(tmp_path / "config.json") == config


def test_awkward_values_survive_a_file(tmp_path: Path) -> None:
    config = TrainConfig(
        data=replace(TrainConfig().data, template="-x = {problem}\n\n'\"\\boxed{}", system="--dash", chat=True),
        optim=OptimConfig(lr=1.2345678901234567e-7, betas=(0.1, 0.95)),
        run=RunConfig(out="a b/c=d", sinks=("wandb", "tensorboard")),
    )
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    assert read_config(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "[optim]\nlr = 3e-5\nbetas = [0.9, 0.95]\n[model]\ngradient_checkpointing = true\n"),
        ("a.json", '{"optim": {"lr": 3e-5, "betas": [0.9, 0.95]}, "model": {"gradient_checkpointing": true}}'),
        ("a.yaml", "optim:\n  lr: 3e-5\n  betas: [0.9, 0.95]\nmodel:\n  gradient_checkpointing: true\n"),
    ],
)
def test_file_formats(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    expected = TrainConfig(optim=OptimConfig(lr=3e-5, betas=(0.9, 0.95)), model=replace(TrainConfig().model, gradient_checkpointing=True))
    assert read_config(tmp_path / name) == expected


def test_keys_that_are_merged_in_are_not_there_twice(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("optim: {lr: 1.0}\nrun: {seed: 1}\n")
    plain = read_config(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("optim: {lr: 1.0}\nrun: {<<: {seed: 2}, seed: 1}\n")
    assert read_config(tmp_path / "b.yaml") == plain


def test_flags() -> None:
    tree = {"run": {"seed": 1, "sinks": []}, "optim": {"betas": [0.9, 0.99]}, "model": {"name": "a b"}}
    assert flags(tree) == ["--run.seed=1", "--run.sinks", "--optim.betas", "0.9", "0.99", "--model.name=a b"]


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.json", '{"optim": {"lrr": 1}}', r"a.json: Unrecognized options: --optim.lrr=1 \(perhaps --optim.lr\)"),
        ("a.toml", "[optimizer]\nlr = 1e-6", r"a.toml: section must be one of model, data, .*optim.*, got 'optimizer'"),
        ("a.json", '{"optim": {"lr": "fast"}}', r"a.json: .*--optim.lr: could not convert string to float: 'fast'"),
        ("a.json", '{"method": {"rho": 2}}', r"a.json: .*rho must be in \(0, 1\], got 2.0"),
        ("a.json", '{"objective": {"kind": "dpo"}}', r"a.json: invalid choice 'dpo' for argument '--objective.kind'"),
        ("a.json", "{", r"a.json: Expecting property name"),
        ("a.json", "[1]", r"a.json: --config must hold a table of settings, got list"),
        ("a.toml", "x = ", r"a.toml: Invalid value"),
        ("a.yaml", "x: [", r"a.yaml: while parsing"),
        ("a.json", '{"optim": {"lr": 1, "lr": 2}}', r"a.json: key must be there once, got 'lr' twice"),
        ("a.yaml", "optim:\n  lr: 1\nrun:\n  seed: 1\noptim:\n  lr: 2\n", r"a.yaml: key must be there once, got 'optim' twice"),
        ("a.yaml", "optim: {lr: 1, lr: 2}", r"a.yaml: key must be there once, got 'lr' twice"),
        ("a.toml", "[run]\nseed = 1\nseed = 2\n", r"a.toml: Cannot overwrite a value"),
        ("a.ini", "", r"a.ini: --config must end in .toml, .json, .yaml or .yml"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=match):
        read_config(tmp_path / name)


def test_where_settings_start_from(tmp_path: Path) -> None:
    assert base_config(None, None, None) == TrainConfig()
    assert base_config(None, "countdown", None) == PRESETS["countdown"]()
    with pytest.raises(ValueError, match=r"--preset must be one of countdown, .*, got 'chess'"):
        base_config(None, "chess", None)
    with pytest.raises(ValueError, match="at most one of --config, --preset and --resume must be given, got --config and --preset"):
        base_config(tmp_path, "countdown", None)
    with pytest.raises(ValueError, match=r"run folder must hold a config.json, got"):
        base_config(None, None, tmp_path)
    with pytest.raises(ValueError, match=r"missing.toml: --config must name an existing file"):
        base_config(tmp_path / "missing.toml", None, None)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rollout": RolloutConfig(group_size=1)}, r"rollout.group_size must be >= 2, got 1"),
        ({"rollout": RolloutConfig(temperature=0)}, r"rollout.temperature must be > 0, got 0"),
        ({"optim": OptimConfig(updates_per_step=3)}, r"optim.updates_per_step must divide optim.prompts_per_step \(32\), got 3"),
        ({"optim": OptimConfig(betas=(0.9, 1.0))}, r"optim.betas must be in \[0, 1\), got \(0.9, 1.0\)"),
        ({"eval": EvalConfig(every=2)}, r"eval.every must be 0 without eval.data and eval.suites, got 2"),
        ({"eval": EvalConfig(temperature=0)}, r"eval.samples must be 1 for eval.temperature 0 .*, got 8"),
        ({"objective": ObjectiveConfig(dual_clip=1.0)}, r"objective.dual_clip must be > 1 or None, got 1.0"),
        ({"objective": ObjectiveConfig(kind="cispo", dual_clip=3.0)}, r"objective.dual_clip must be None for objective.kind cispo"),
        ({"objective": ObjectiveConfig(kind="gspo")}, r"objective.aggregation must be sequence_mean for .* gspo, got token_mean"),
        ({"run": RunConfig(keep=0)}, r"run.keep must be >= 1, got 0"),
    ],
)
def test_rules_between_fields(change: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        check_config(replace(TrainConfig(), **change))


ROW_OPTIONS = {
    "prompt_column": "question",
    "answer_column": "gold",
    "tier_column": "level",
    "chat": True,
    "system": "Be brief.",
    "template_args": ("a=1",),
    "date": "2026-11-29",
    "template": "{problem}!",
}


@pytest.mark.parametrize("name", [*ROW_OPTIONS, "revision"])
def test_embedded_tasks_refuse_what_they_do_not_read(name: str) -> None:
    config = replace(TrainConfig(), data=DataConfig(train="builtin:chains:0.5", **{name: (ROW_OPTIONS | {"revision": "main"})[name]}))
    match = rf"data.{name} must be its default \(.*\) for data.train builtin:chains:0.5, which does not read it, got"
    for evaluation in (EvalConfig(), EvalConfig(data="builtin:chains")):
        with pytest.raises(ValueError, match=match):
            check_config(replace(config, eval=evaluation))


def test_options_that_something_reads_are_taken() -> None:
    """Those of a file to evaluate on, of suites, and those that embedded tasks read."""
    rows = DataConfig(**ROW_OPTIONS)
    for evaluation in (EvalConfig(data="rows.jsonl"), EvalConfig(suites=("aime24",))):
        check_config(replace(TrainConfig(), data=rows, eval=evaluation))
    check_config(replace(TrainConfig(), data=replace(rows, train="rows.jsonl")))
    check_config(replace(TrainConfig(), data=DataConfig(split="validation", limit=9, max_prompt_tokens=20)))


OFF = {"objective.kl": "k2", "reward.overlong_penalty": 0.5, "difficulty.width": 0.1, "difficulty.unsolved": 0.2, "difficulty.min_group": 3}
ON = {
    "objective.kl_coef > 0": ("objective.kl_coef", 0.01),
    "reward.overlong_buffer > 0": ("reward.overlong_buffer", 4),
    "difficulty.target": ("difficulty.target", 0.0),
    "difficulty.boost > 1": ("difficulty.boost", 2.0),
}


@pytest.mark.parametrize("name", INERT)
def test_what_is_off_takes_no_options(name: str) -> None:
    config = with_option(TrainConfig(), name, OFF[name])
    needed, _ = INERT[name]
    with pytest.raises(ValueError, match=rf"^{name} must be its default \(.*\) without {needed}, got {OFF[name]}$"):
        check_config(config)
    check_config(with_option(config, *ON[needed]))


def with_option(config: TrainConfig, name: str, value: object) -> TrainConfig:
    section, option = name.split(".")
    return replace(config, **{section: replace(getattr(config, section), **{option: value})})


@pytest.mark.parametrize(("name", "value"), [("difficulty.target", 0.5), ("difficulty.drop_solved", 0.9)])
def test_what_is_unsolved_by_choice_does_not_say_whether_to_wait(name: str, value: float) -> None:
    config = replace(TrainConfig(), method=EntropyControlConfig(patience=16))
    check_config(config)
    check_config(with_option(TrainConfig(), name, value))
    with pytest.raises(ValueError, match=r"^method.patience must be None with difficulty.target or drop_solved: .*, got 16$"):
        check_config(with_option(config, name, value))
    both = replace(TrainConfig(), method=method_class("stare+aer").Config(aer=EntropyControlConfig(patience=16)))
    check_config(both)
    with pytest.raises(ValueError, match=r"^method.aer.patience must be None with difficulty.target or drop_solved: .*, got 16$"):
        check_config(with_option(both, name, value))


def test_a_run_ends_after_it_has_waited() -> None:
    with pytest.raises(ValueError, match=r"patience must be less than updates \(10\), or there is never a bonus, got 16"):
        check_config(with_option(replace(TrainConfig(), method=EntropyControlConfig(patience=16)), "run.steps", 10))
