"""From one file to jobs and their configurations."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from aer_kernels import BELOW_START, EXPLORE_THEN_SETTLE, EntropyControlConfig
from aer_train.config.presets import PRESETS
from study import __main__ as command
from study.config import Study, merge
from study.names import AER
from tests.study.samples import QUICK


def test_a_job_becomes_a_configuration(study, tmp_path):
    matrix = study.matrix("quick", seeds=[3, 5])
    assert [(job.method, job.seed) for job in matrix.jobs] == [("grpo", 3), ("aer", 3), ("grpo", 5), ("aer", 5)]
    other = study.matrix("quick", methods=["aer"], hard_shares=[0.2, 0.8], seeds=None).jobs
    assert [(job.method, job.hard_share, job.seed) for job in other] == [("aer", 0.2, 0), ("aer", 0.8, 0)]
    config = study.train_config(matrix, matrix.jobs[1], tmp_path / "run", tmp_path / "policy")
    assert (config.method.kind, config.method.tau, config.optim.lr, config.optim.prompts_per_step) == ("aer", 0.7, 2e-3, 4)
    assert (config.data.train, config.reward.kind, config.run.seed, config.run.steps) == ("builtin:countdown:0.5", "countdown", 3, 3)
    assert str(matrix.jobs[1].folder) == "tiny-hard0.5-lr2/aer/seed3"
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


def test_a_table_is_like_an_earlier_one(study, tmp_path):
    """What it does not set is the other's, at every depth; the other stays as it is; there must be one."""
    (tmp_path / "study.toml").write_text(
        f'[methods.first]\nmethod = {{tau = 0.5, rho = 0.2}}\n[methods.second]\nlike = "first"\nmethod = {{tau = 0.6}}\n{QUICK}'
    )
    methods = Study.read(tmp_path / "study.toml").methods
    assert (methods["first"], methods["second"]) == ({"method": {"tau": 0.5, "rho": 0.2}}, {"method": {"tau": 0.6, "rho": 0.2}})
    (tmp_path / "study.toml").write_text(f'[methods.second]\nlike = "third"\n{QUICK}')
    with pytest.raises(ValueError, match=r"like must name one of .*, got 'third'"):
        Study.read(tmp_path / "study.toml")


def test_the_presets_and_the_readme_have_the_recipe_that_was_measured(tmp_path):
    """It is for policies trained from scratch. Pretrained models, one of which learned next to nothing by it, get the form below the start."""
    study = Study.read()
    matrix = study.matrix("compare", methods=[AER])
    measured = study.train_config(matrix, matrix.jobs[0], tmp_path, tmp_path).method
    assert replace(measured, rho=1.0, least_weight=0.0) == EXPLORE_THEN_SETTLE, "what uniform weights do not read may differ"
    methods = {name: preset().method for name, preset in PRESETS.items()}
    assert methods == dict.fromkeys(PRESETS, BELOW_START) | {"countdown": EXPLORE_THEN_SETTLE}
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    example = tomllib.loads(re.search(r"```toml\n(# run.toml.*?)```", readme, re.DOTALL)[1])
    assert EntropyControlConfig(**example["method"]) == BELOW_START
    real = Study.read(command.CONFIG.parent / "real" / "real.toml").methods
    assert EntropyControlConfig(**real["aer_below"]["method"]) == BELOW_START
    assert EntropyControlConfig(**real["aer_above"]["method"]) == EXPLORE_THEN_SETTLE


@pytest.mark.parametrize(
    "change, message",
    [
        (("[matrices.quick]", "[matrices.other]"), "matrix must name one of other, got 'quick'"),
        (('methods = ["grpo", "aer"]', 'methods = ["ppo"]'), "methods must name one of grpo, aer, broken, got 'ppo'"),
        (("[methods.grpo]", "[methods.grpo"), "must hold the tables settings, methods and matrices, got"),
    ],
)
def test_bad_files(tmp_path, capsys, change, message):
    (tmp_path / "bad.toml").write_text(QUICK.replace(*change))
    assert command.main(["quick", "--out", str(tmp_path / "out"), "--config", str(tmp_path / "bad.toml")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
