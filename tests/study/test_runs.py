"""From jobs to runs and their records: once, not side by side, and again where something is missing."""

import json
from concurrent.futures import Future
from dataclasses import replace

import pytest

from aer_train.tasks.prompts import TIERS
from study import __main__ as command
from study.conditions import CONDITIONS, start_table, write_conditions
from study.config import Job, Study
from study.jobs import run_job, run_matrix
from study.lock import locked
from study.policies import REPORT, policy_folder, prepare
from study.reach import reach_table
from study.records import DONE, read_records, write_records
from study.settings import settings_of, settings_path
from tests.study.samples import QUICK, record


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
    run_job(job, study.train_config(matrix, job, out / job.folder, policy_folder(cache, study.tasks["tiny"])), matrix)
    again = json.loads(lost.read_text())
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in aer.items() if k != "seconds"}


def test_settings_that_share_a_policy_make_it_once(tmp_path, monkeypatch):
    """Two that were made side by side would end in the same folder."""
    (tmp_path / "study.toml").write_text(QUICK.replace("[methods.grpo]", '[tasks.same]\nlike = "tiny"\n\n[methods.grpo]'))
    study, made = Study.read(tmp_path / "study.toml"), []
    matrix = study.matrix("quick", tasks=["tiny", "same"])

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
    assert made == [study.tasks["same"]]


def test_runs_that_were_made_with_other_settings_are_refused(study, tmp_path):
    """A finished or begun run is not taken for that of a method that has been changed since; another place of the policies is no change."""
    matrix, out, cache = study.matrix("quick", methods=["aer"]), tmp_path / "out", tmp_path / "policies"
    run = out / matrix.jobs[0].folder
    settings = settings_of(study.train_config(matrix, matrix.jobs[0], run, tmp_path / "elsewhere"), matrix)
    assert settings["entropy.tau"] == 0.7 and settings["study.samples"] == 2
    run.parent.mkdir(parents=True)
    settings_path(run).write_text(json.dumps(settings))
    (run / DONE).parent.mkdir()
    (run / DONE).write_text("{}")
    assert run_matrix(study, matrix, out, cache, workers=1) == []
    study.methods["aer"]["entropy"]["tau"] = 0.8
    with pytest.raises(ValueError, match=r"--out must hold runs with entropy\.tau 0\.8, as the matrix says now, got 0\.7 in .*seed0"):
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
    matrix = replace(study.matrix("quick", methods=["aer"], hard_shares=[0.5]), steps=4, splits=(), probes=(2, 4))
    policy, job = prepare(tmp_path / "policies", study.tasks["tiny"]), matrix.jobs[0]

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
    policy_folder(cache, study.tasks["tiny"]).mkdir(parents=True)
    (policy_folder(cache, study.tasks["tiny"]) / REPORT).write_text('{"easy accuracy": 0.75}')
    write_conditions(study, matrix, cache, tmp_path)
    written = (tmp_path / CONDITIONS).read_text()
    assert {"hardware", "torch", "commit", "date"} <= set(json.loads(written)["environment"])
    assert start_table(json.loads(written)).splitlines()[-1] == "| tiny | 0.7500 |"
    write_conditions(study, replace(matrix, jobs=[]), cache, tmp_path)
    assert (tmp_path / CONDITIONS).read_text() == written
    (policy_folder(cache, study.tasks["tiny"]) / REPORT).write_text('{"easy accuracy": 0.5}')
    with pytest.raises(ValueError, match="--cache must hold the policy of tiny that the runs"):
        write_conditions(study, matrix, cache, tmp_path)


def test_records_survive_a_file(tmp_path):
    records = [record("grpo", 0, [0, 0], [4, 4])]
    write_records(records, tmp_path / "raw" / "study.jsonl")
    assert read_records(tmp_path / "raw" / "study.jsonl") == json.loads(json.dumps(records))
    with pytest.raises(ValueError, match="must hold at least one finished run"):
        read_records(tmp_path / "raw")


def test_a_run_that_diverges_is_a_result(study, tmp_path):
    job = Job("tiny", "broken", 0.5, 1.0, 0)
    policy = prepare(tmp_path / "policies", study.tasks["tiny"])
    assert "hard pass@64" in json.loads((policy / REPORT).read_text()), "with as many samples as the last policies"
    run_job(job, study.train_config(study.matrix("quick"), job, tmp_path / "run", policy), study.matrix("quick"))
    found = json.loads((tmp_path / "run" / DONE).read_text())
    assert "must be finite" in found["diverged"] and found["right"] == {}
