"""A run that goes on is the run that was not cut off, and what cannot go on is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from aer_train.config.tree import EvalConfig, RewardConfig, RolloutConfig, TrainConfig
from aer_train.run import checkpoint
from aer_train.run.folder import read_evals, read_metrics
from aer_train.run.lock import RunLock
from aer_train.trainer import train
from tests.train.same_run import assert_same_run, changed, checkpoint_state, stable_rows


@pytest.mark.slow
@pytest.mark.parametrize("updates_per_step", [1, 2])
def test_two_and_two_steps_are_four(config: TrainConfig, tmp_path: Path, updates_per_step: int) -> None:
    config = changed(config, "optim", updates_per_step=updates_per_step)
    whole = train(changed(config, "run", out=str(tmp_path / "whole")))
    parts = train(changed(config, "run", steps=2))
    assert len(stable_rows(parts)) == 2
    train(config, resume=True)
    assert_same_run(whole, parts)
    rows = stable_rows(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["entropy/coef"] == 0.0 and rows[-1]["entropy/coef"] > 0.0
    assert len({row["optim/grad_norm"] for row in rows}) == 4, "every step trained"


@pytest.mark.slow
def test_a_moving_target_of_responses_resumes_exactly(config: TrainConfig, tmp_path: Path) -> None:
    """The horizon of the target is that of the whole run; what is held is the entropy of a response."""
    entropy = replace(config.method, target=None, quantity="response", tau=0.9, tau_end=0.3, hold=0.25, updates=4)
    entropy = replace(entropy, least_weight=0.5, settle_unsolved=0.5, surplus=1.0)
    config = replace(config, method=entropy, reward=RewardConfig(kind="tests.train.rewards.digit_share", workers=1))
    whole = train(changed(config, "run", out=str(tmp_path / "whole")))
    train(changed(config, "run", steps=2))
    train(config, resume=True)
    assert_same_run(whole, Path(config.run.out))
    rows = stable_rows(whole)
    assert [row["entropy/controlled"] for row in rows] == [row["entropy/per_response"] for row in rows]
    assert [row["entropy/target"] / rows[0]["entropy/per_response"] for row in rows] == pytest.approx([0.9, 0.7, 0.5, 0.3])


@pytest.mark.slow
def test_the_entropy_of_difficult_prompts_resumes_exactly(config: TrainConfig, tmp_path: Path) -> None:
    entropy = replace(config.method, target=None, quantity="response", tau=1.1, held="difficult")
    config = replace(config, method=entropy, reward=RewardConfig(kind="tests.train.rewards.digit_share", workers=1))
    whole = train(changed(config, "run", out=str(tmp_path / "whole")))
    train(changed(config, "run", steps=2))
    train(config, resume=True)
    assert_same_run(whole, Path(config.run.out))
    assert any(abs(row["entropy/controlled"] - row["entropy/per_response"]) > 1e-3 for row in stable_rows(whole)), "not that of all"


@pytest.mark.slow
def test_refill_resumes_exactly_and_counts_what_it_costs(config: TrainConfig, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    config = replace(
        changed(config, "optim", updates_per_step=1, prompts_per_step=4),
        rollout=RolloutConfig(group_size=2, max_new_tokens=3, refill_rounds=2, refill="zero_variance"),
        reward=RewardConfig(kind="tests.train.rewards.digit_share", workers=1),
    )
    whole = train(changed(config, "run", out=str(tmp_path / "whole")))
    parts = train(changed(config, "run", steps=2))
    train(config, resume=True)
    assert_same_run(whole, parts)
    rows = stable_rows(whole)
    assert sum(row["refill/groups_replaced"] for row in rows) > 0
    assert checkpoint_state(whole)["prompts"] == sum(4 + row["refill/samples_wasted"] // 2 for row in rows)
    for row in rows:
        samples = pq.read_table(whole / "samples" / f"step_{row['step']:06d}.parquet").to_pylist()
        assert len(samples) == 8 + row["refill/samples_wasted"] and [s["trained"] for s in samples] == [True] * 8 + [False] * (
            len(samples) - 8
        )
        assert sum(s["num_tokens"] for s in samples) == row["tokens/generated"]
        assert {s["version"] for s in samples} == {row["step"] - 1}
        assert sum(s["reward"] for s in samples[:8]) / 8 == pytest.approx(row["reward/batch_mean"])


@pytest.mark.slow
def test_a_killed_run_ends_like_an_undisturbed_one(config: TrainConfig, tmp_path: Path) -> None:
    config = changed(config, "run", steps=24, save_every=4)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(asdict(config)))
    child = subprocess.Popen([sys.executable, "-m", "aer_train", "train", "--config", str(settings)], stdout=subprocess.DEVNULL)
    run, deadline = Path(config.run.out), time.monotonic() + 60
    rows = run / "metrics.jsonl"
    try:
        while not (rows.exists() and rows.read_bytes().count(b"\n") >= 6):
            assert child.poll() is None and time.monotonic() < deadline, "the run must be killed in the middle"
            time.sleep(0.005)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert "step_000004" <= checkpoint.latest(run).name < "step_000024"
    with rows.open("a") as file:
        file.write('{"step": 99, "torn')
    train(config, resume=True)
    assert_same_run(run, train(changed(config, "run", out=str(tmp_path / "whole"))))


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_starts_again(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert len(stable_rows(Path(config.run.out))) == 2, "what was done is on record"
    train(config, resume=True)
    assert_same_run(Path(config.run.out), train(changed(config, "run", out=str(tmp_path / "whole"))))


@pytest.mark.slow
def test_evaluation_cannot_disturb_training(config: TrainConfig, tmp_path: Path) -> None:
    with_eval = replace(config, eval=EvalConfig(data="builtin:countdown", every=1, samples=2, limit=4))
    a, b = train(with_eval), train(changed(config, "run", out=str(tmp_path / "plain")))
    assert_same_run(a, b)
    evals = read_evals(a)
    assert list(evals) == [0, 1, 2, 3, 4] and not read_evals(b)
    assert (
        evals[4]["step"] == 4 and evals[4]["data"][0]["source"] == "builtin:countdown" and set(evals[4]["tiers"]) == {"easy", "hard", "all"}
    )


def test_an_existing_run_is_not_overwritten(config: TrainConfig) -> None:
    Path(config.run.out).mkdir()
    (Path(config.run.out) / "mine").touch()
    with pytest.raises(ValueError, match=r"run.out must not exist yet \(or be an empty folder\), got "):
        train(config)
    (Path(config.run.out) / "config.json").touch()
    with pytest.raises(ValueError, match=r"run.out must not exist yet \(or use --resume .*\), got "):
        train(config)


def test_a_run_below_a_file_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "afile").touch()
    with pytest.raises(ValueError, match=r"run.out must be in a folder, got .*afile/a/b, where .*afile is a file"):
        train(changed(config, "run", out=str(tmp_path / "afile" / "a" / "b")))


def test_a_restart_goes_on_in_its_own_folder_alone(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun restarts a command that was refused, too: the run that was in its way must stay as it is."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    config = changed(config, "run", steps=2)
    run = train(changed(config, "run", steps=1))
    assert len(read_metrics(run)) == 1, "a start that failed before there was a folder begins again"
    with pytest.raises(ValueError, match=r"run.out must not exist yet \(or use --resume .*\), got "):
        train(changed(config, "optim", lr=0.5))
    assert len(read_metrics(run)) == 1
    train(config, resume=True)
    before = (run / "metrics.jsonl").read_bytes()
    assert train(config) == run and (run / "metrics.jsonl").read_bytes() == before, "its own, which is done"


def test_a_run_that_is_going_on_is_not_resumed(config: TrainConfig) -> None:
    run = train(changed(config, "run", steps=1))
    before = (run / "metrics.jsonl").stat().st_ino
    lock = RunLock()
    lock.take(run)
    with pytest.raises(ValueError, match=r"run.out must not be in use by another process, got .*, which process \d+ on .* trains in"):
        train(config, resume=True)
    lock.close()
    assert (run / "metrics.jsonl").stat().st_ino == before
    train(changed(config, "run", steps=2), resume=True)
    assert [row["step"] for row in read_metrics(run)] == [1, 2]


def test_another_model_is_refused_at_resume(config: TrainConfig, untied_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights would not be used but as the reference of a KL penalty that begins with the resume, and config.json would name it."""
    run = train(changed(config, "run", steps=1))
    before = (run / "config.json").read_bytes()
    for changes, message in (
        ({"name": str(untied_folder)}, rf"model.name must be what the run began with, '{config.model.name}', got '{untied_folder}'"),
        ({"revision": "abc"}, r"model.revision must be what the run began with, None, got 'abc'"),
    ):
        for kl_coef in (0.0, 0.1):
            with pytest.raises(ValueError, match=message):
                train(changed(changed(config, "model", **changes), "objective", kl_coef=kl_coef), resume=True)
    assert (run / "config.json").read_bytes() == before
    monkeypatch.chdir(Path(config.model.name).parent)
    same = changed(config, "model", name=Path(config.model.name).name)
    train(changed(same, "run", steps=2), resume=True)
    assert [row["step"] for row in read_metrics(run)] == [1, 2]


def test_the_reference_of_a_penalty_may_have_moved(config: TrainConfig, tmp_path: Path) -> None:
    """The digest in the checkpoint proves that it is the same."""
    model = tmp_path / "model"
    shutil.copytree(config.model.name, model)
    config = changed(changed(config, "objective", kl_coef=0.1), "model", name=str(model))
    run = train(changed(config, "run", steps=1))
    moved = model.rename(tmp_path / "moved")
    train(changed(changed(config, "model", name=str(moved)), "run", steps=2), resume=True)
    assert [row["step"] for row in read_metrics(run)] == [1, 2]
