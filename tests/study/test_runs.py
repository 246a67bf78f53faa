"""From jobs to runs and their records: once, not side by side, and again where something is missing."""

import json
from argparse import Namespace
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aer_train.config.method import method_of
from aer_train.tasks import warmup
from aer_train.tasks.prompts import TIERS
from study import __main__ as command
from study.conditions import CONDITIONS, start_table, write_conditions
from study.config import Job, Study, merge
from study.jobs import run_job, run_matrix
from study.lock import locked
from study.options import options_of, options_path
from study.policies import REPORT, policy_folder, prepare, stages
from study.reach import reach_table
from study.records import DONE, read_records
from study.vocabulary import add_words, widened
from tests.study.samples import QUICK, record

pytestmark = pytest.mark.slow


def test_a_matrix_runs_once_and_goes_on(study, tmp_path, capsys):
    """Two runs in a process of their own; what has a record is not run again; a lost record is made again with the same numbers."""
    matrix, out, cache = study.matrix("quick"), tmp_path / "out", tmp_path / "policies"
    assert run_matrix(study, matrix, out, cache, workers=1) == []
    records = read_records(out)
    assert [r["method"] for r in records] == ["aer", "grpo"]
    assert json.loads((out / CONDITIONS).read_text())["policies"]["tiny"].keys() >= {"easy accuracy", "hard accuracy"}
    aer, grpo = records
    assert len(aer["curves"]["entropy"]) == 3 and aer["curves"]["entropy"][0] == grpo["curves"]["entropy"][0]
    assert (
        aer["curves"]["target"] == pytest.approx([0.7 * aer["curves"]["entropy"][0]] * 3, rel=1e-3)
        and grpo["curves"]["target"] == [None] * 3
    )
    assert {split: {tier: len(counts) for tier, counts in tiers.items()} for split, tiers in aer["right"].items()} == {
        "validation": {"easy": 2, "hard": 2},
        "test": {"easy": 2, "hard": 2},
    }
    (lost,) = [path for path in out.rglob(DONE) if path.parts[-3] == "aer"]
    lost.unlink()
    assert run_matrix(study, replace(matrix, jobs=matrix.jobs[:1]), out, cache, workers=1) == [] and not lost.exists(), "nothing to do"
    job = matrix.jobs[1]
    run_job(job, study.train_config(matrix, job, out / job.folder, policy_folder(cache, study.settings["tiny"])), matrix)
    again = json.loads(lost.read_text())
    clocks = ("seconds", "training_cpu")
    assert {k: v for k, v in again.items() if k not in clocks} == {k: v for k, v in aer.items() if k not in clocks}
    assert aer["training_cpu"] > 0 and "training_cpu" not in again, "one that goes on has not been timed from its beginning"


def test_settings_that_share_a_policy_make_it_once(tmp_path, monkeypatch):
    """Two that were made side by side would end in the same folder."""
    (tmp_path / "study.toml").write_text(QUICK.replace("[methods.grpo]", '[settings.same]\nlike = "tiny"\n\n[methods.grpo]'))
    study, made = Study.read(tmp_path / "study.toml"), []
    matrix = study.matrix("quick", settings=["tiny", "same"])

    def submit(_, function, cache, setting):
        made.append(setting)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("study.jobs.ProcessPoolExecutor.submit", submit)
    monkeypatch.setattr("study.jobs.write_conditions", stop)
    with pytest.raises(KeyboardInterrupt):
        run_matrix(study, matrix, tmp_path / "out", tmp_path / "policies", workers=2)
    assert made == [study.settings["same"]]


def test_runs_that_were_made_with_other_options_are_refused(study, tmp_path):
    """A finished or begun run is not taken for that of a method that has been changed since; another place of the policies is no change."""
    matrix, out, cache = study.matrix("quick", methods=["aer"]), tmp_path / "out", tmp_path / "policies"
    run = out / matrix.jobs[0].folder
    options = options_of(study.train_config(matrix, matrix.jobs[0], run, tmp_path / "elsewhere"), matrix)
    assert options["method.tau"] == 0.7 and options["study.samples"] == 2
    run.parent.mkdir(parents=True)
    options_path(run).write_text(json.dumps(options))
    (run / DONE).parent.mkdir()
    (run / DONE).write_text("{}")
    assert run_matrix(study, matrix, out, cache, workers=1) == []
    study.methods["aer"]["method"]["tau"] = 0.8
    with pytest.raises(ValueError, match=r"--out must hold runs with method\.tau 0\.8, as the matrix says now, got 0\.7 in .*seed0"):
        run_matrix(study, matrix, out, cache, workers=1)


def test_two_commands_do_not_share_a_folder(study, tmp_path, capsys):
    """The second is refused while the first is at work, and served afterwards."""
    with locked(tmp_path / "out"):
        assert command.main(["quick", "--config", str(tmp_path / "study.toml"), "--out", str(tmp_path / "out")]) == 2
    assert "error: --out must not be in use by another command, got" in capsys.readouterr().err and not list((tmp_path / "out").rglob(DONE))
    with locked(tmp_path / "out"):
        pass


def test_an_interrupted_matrix_does_not_run_to_its_end(study, tmp_path, monkeypatch):
    def interrupt(progress, bar):
        raise KeyboardInterrupt

    monkeypatch.setattr("study.jobs.Progress.advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_matrix(study, study.matrix("quick", seeds=[0, 1, 2, 3]), tmp_path / "out", tmp_path / "policies", workers=1)
    assert 1 <= len(read_records(tmp_path / "out")) < 8


def test_how_far_a_bonus_reaches(study, tmp_path, monkeypatch):
    """It is the bonus that moves the entropy, and nothing else; the checkpoints that are needed are there, and are gone afterwards."""
    monkeypatch.setattr("study.policies.SAMPLES", 2)
    matrix = replace(study.matrix("quick", methods=["aer"], hard_shares=[0.5]), steps=4, splits=(), probes=(2, 4))
    policy, job = prepare(tmp_path / "policies", study.settings["tiny"]), matrix.jobs[0]

    def found(run):
        run_job(job, study.train_config(matrix, job, run, policy), matrix)
        assert not (run / "checkpoints").exists()
        return json.loads((run / DONE).read_text())

    rises = found(tmp_path / "run")
    assert rises["reach"].keys() == {"2", "4"} and all(rises["reach"][step][on][of] for step in ("2", "4") for on in TIERS for of in TIERS)
    assert "| tiny, lr x 2 | 1 | " in reach_table([rises])
    monkeypatch.setattr("study.reach.COEF", 0.0)
    nothing = {tier: dict.fromkeys(TIERS, 0.0) for tier in TIERS}
    assert found(tmp_path / "without")["reach"] == {"2": nothing, "4": nothing}


def test_conditions_are_written_once(study, tmp_path):
    matrix, cache = study.matrix("quick"), tmp_path / "policies"
    policy_folder(cache, study.settings["tiny"]).mkdir(parents=True)
    (policy_folder(cache, study.settings["tiny"]) / REPORT).write_text('{"easy accuracy": 0.75}')
    write_conditions(study, matrix, cache, tmp_path)
    written = (tmp_path / CONDITIONS).read_text()
    assert {"hardware", "torch", "commit", "date"} <= set(json.loads(written)["environment"])
    assert start_table(json.loads(written)).splitlines()[-1] == "| tiny | 0.7500 |"
    write_conditions(study, replace(matrix, jobs=[]), cache, tmp_path)
    assert (tmp_path / CONDITIONS).read_text() == written
    study.settings["new"] = study.settings["tiny"] | {"policy_seed": 1}
    policy_folder(cache, study.settings["new"]).mkdir()
    (policy_folder(cache, study.settings["new"]) / REPORT).write_text('{"easy accuracy": 0.25}')
    write_conditions(study, study.matrix("quick", settings=["new"]), cache, tmp_path)
    assert json.loads((tmp_path / CONDITIONS).read_text())["policies"] == {"tiny": {"easy accuracy": 0.75}, "new": {"easy accuracy": 0.25}}
    (policy_folder(cache, study.settings["tiny"]) / REPORT).write_text('{"easy accuracy": 0.5}')
    with pytest.raises(ValueError, match="--cache must hold the policy of tiny that the runs"):
        write_conditions(study, matrix, cache, tmp_path)


def test_a_run_that_diverges_is_a_result(study, tmp_path):
    job = Job("tiny", "broken", 0.5, 1.0, 0)
    policy = prepare(tmp_path / "policies", study.settings["tiny"])
    assert "hard pass@64" in json.loads((policy / REPORT).read_text()), "with as many samples as the last policies"
    run_job(job, study.train_config(study.matrix("quick"), job, tmp_path / "run", policy), study.matrix("quick"))
    found = json.loads((tmp_path / "run" / DONE).read_text())
    assert "must be finite" in found["diverged"] and found["right"] == {}


def test_a_seed_can_have_a_policy_of_its_own(tmp_path):
    """With words that are never right, too: the policy does what the first one does, has more tokens, and is named in the conditions."""
    settings = QUICK.replace(
        "[methods.grpo]", '[settings.wide]\nlike = "tiny"\npolicy_seed = "run"\nwords = 50\nwords_steps = 1\n\n[methods.grpo]'
    )
    (tmp_path / "study.toml").write_text(settings)
    study, cache, out = Study.read(tmp_path / "study.toml"), tmp_path / "policies", tmp_path / "out"
    matrix = replace(study.matrix("quick", settings=["wide", "tiny"], seeds=[3], methods=["grpo"]), splits=("test", "test at 0.5"))
    assert run_matrix(study, matrix, out, cache, workers=1) == []
    assert {path.name for path in cache.iterdir()} == {
        f"countdown-small-rare0.005{words}-seed{seed}" for words, seed in (("", 0), ("", 3), ("-words50", 3))
    }
    assert json.loads((out / CONDITIONS).read_text())["policies"].keys() == {"wide, seed 3", "tiny"}
    sizes = {r["setting"]: r["curves"]["entropy"][0] for r in read_records(out)}
    assert sizes["wide"] > sizes["tiny"], "the words are there, and take their share"
    assert all(r["right"].keys() == {"test", "test at 0.5"} for r in read_records(out))


def test_what_several_policies_begin_from_is_made_once_and_before_them():
    """Three vocabularies over one policy, twice each; two workers would otherwise make that policy side by side."""
    study, cache = Study.read(), Path("cache")
    jobs = study.matrix("vocabulary", seeds=[70], methods=["grpo", "fixed03"]).jobs
    first, second = ([folder.name for folder in stage] for stage in stages(cache, [study.setting_of(job) for job in jobs]))
    assert first == ["countdown-small-rare0.001-seed70", "countdown4-small-rare0.002-seed70"]
    assert len(second) == len(set(second)) == 6 and all("words" in name for name in second)


def test_added_words_leave_the_rest_as_it_was():
    """The embeddings of the old tokens, and so the log-probs among them; input and output stay tied; too many are refused."""
    model = warmup.build_model("small")
    old = model.model.embed_tokens.weight.detach().clone()
    wide = widened(model, 117)
    assert wide.lm_head.weight is wide.model.embed_tokens.weight and wide.config.vocab_size == 117
    assert torch.equal(wide.model.embed_tokens.weight[:17], old)
    assert float(wide.model.embed_tokens.weight[17:].detach().std()) == pytest.approx(0.3 * float(old.std()), rel=0.05)
    with pytest.raises(ValueError, match=r"words must be in \[1, 20000\], got 0"):
        add_words(Path("none"), Path("none"), "countdown", 0, 0, 0.1)


PLANNED = ["methods", "methods_tuning", "vocabulary", "policies", "temperature", "temperature_robust", "temperature_advantage",
           "grid", "grid_robust", "grid_advantage", "factorial", "graded", "graded_tuning", "graded_again", "token_targets_flat"]  # fmt: skip
"""The matrices of docs/study_plan.md and docs/study_methods.md."""


def test_every_method_of_the_plan_can_be_made(tmp_path):
    study, seen = Study.read(), dict[str, str]()
    for name in PLANNED:
        matrix = study.matrix(name)
        for job in matrix.jobs:
            if job.method not in seen:
                config = study.train_config(matrix, job, tmp_path, tmp_path)
                method_of(config)
                seen[job.method] = config.method.kind
    assert (seen["stare_2"], seen["annealed10"], seen["hot130"], seen["bang_bang_1"]) == (
        "stare",
        "study.annealed.Annealed",
        "off",
        "bang_bang",
    )


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """What the settings of the plan have in common: most begin from the same policy."""
    return tmp_path_factory.mktemp("policies")


@pytest.mark.parametrize("name", PLANNED)
def test_the_plan_can_be_run(tmp_path, policies, name, monkeypatch):
    """First and last method train two steps at the last setting, and are evaluated, with a warm-up of three steps and 20 words in place of thousands."""
    monkeypatch.setattr("study.policies.SAMPLES", 2)
    study = Study.read()
    matrix = study.matrix(name)
    last = matrix.jobs[-1].setting
    setting = study.settings[last] | {"warmup_steps": [2, 1], "words_steps": 1}
    setting |= {"words": 20} if "words" in setting else {}
    study.settings[last] = setting | {"config": merge(setting["config"], {"data": {"limit": 64}, "optim": {"prompts_per_step": 4}})}
    jobs = [job for job in matrix.jobs if job.setting == last]
    tiny = replace(matrix, jobs=[jobs[0], jobs[-1]], steps=2, samples=2, eval_limit=4)
    for job in tiny.jobs:
        policy = prepare(policies, study.setting_of(job))
        run_job(job, study.train_config(tiny, job, tmp_path / job.folder, policy), tiny)
        record = json.loads((tmp_path / job.folder / DONE).read_text())
        assert (record["steps"], record["diverged"]) == (2, None) and record["right"].keys() == set(matrix.splits)


def test_greedy_evaluation_makes_no_real_model(study, tmp_path, monkeypatch):
    """The table of a real model is for settings that have one: an embedded task has no numbers of test problems before training."""
    matrix = replace(study.matrix("quick"), splits=("test", "test at 0"))
    made = [record(method, 0, (1, 2), (3, 4)) for method in ("grpo", "aer")]
    for one in made:
        one["right"]["test at 0"] = {"hard": [0, 4], "easy": [4, 4]}
    monkeypatch.setattr(command, "run_matrix", lambda *_: [])
    monkeypatch.setattr(command, "read_records", lambda _: made)
    assert command._finish(study, matrix, Namespace(out=tmp_path, cache=tmp_path, workers=1)) == 0
    assert {path.name for path in tmp_path.glob("*.md")} == {"control.md", "test.md", "test at 0.md"}
