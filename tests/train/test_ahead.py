"""rollout.ahead: what is sampled when and with which weights, that it resumes exactly, and what happens when a server fails meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from aer_kernels import EntropyControlConfig
from aer_train import trainer
from aer_train.ahead import FILE
from aer_train.cli import main
from aer_train.config.checks import check_config
from aer_train.config.tree import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    TrainConfig,
    VLLMConfig,
)
from aer_train.preemption import Preempted
from aer_train.rollout import http
from aer_train.rollout.protocol import SyncError
from aer_train.run.folder import read_evals, read_metrics
from aer_train.trainer import train
from aer_train.types import Verdict
from aer_train.verify.rewards import PendingSum
from tests.train.fake_vllm_server import FakeServer
from tests.train.same_run import changed, final_state, stable_rows
from tests.train.test_dist import torchrun

pytestmark = pytest.mark.slow

SAMPLES = 4 * 2
"""Of a step."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSE", 0.001)


@pytest.fixture
def server(model_folder: Path) -> Iterator[FakeServer]:
    found = FakeServer(model_folder)
    yield found
    found.close()


@pytest.fixture
def config(model_folder: Path, server: FakeServer, tmp_path: Path) -> TrainConfig:
    """Four steps; the learning rate is high, so that other weights sample something else."""
    return TrainConfig(
        model=ModelConfig(name=str(model_folder)),
        data=DataConfig(limit=96),
        rollout=RolloutConfig(backend="vllm_server", group_size=2, max_new_tokens=4, ahead=1),
        vllm=VLLMConfig(urls=(server.url,), start_timeout=300.0),
        reward=RewardConfig(kind="tests.train.rewards.digit_share", workers=1),
        method=EntropyControlConfig(target=5.0),
        optim=OptimConfig(lr=3e-3, prompts_per_step=4, tokens_per_microbatch=64),
        run=RunConfig(out=str(tmp_path / "run"), steps=4, threads=1, save_every=2),
    )


def at_update(monkeypatch: pytest.MonkeyPatch, then: Callable[[int], object]) -> None:
    """Do something while a step trains, before its weights change."""
    real = trainer.update_policy

    def update(policy: Any, optimizer: Any, weighed: Any, config: Any, step: int, *rest: Any) -> Any:
        then(step)
        return real(policy, optimizer, weighed, config, step, *rest)

    monkeypatch.setattr(trainer, "update_policy", update)


def versions(server: FakeServer) -> list[list[int]]:
    """Of the weights that sampled each step."""
    found = [int(label.rpartition("-")[2]) for _, _, label in server.times]
    return [sorted(set(found[start : start + SAMPLES])) for start in range(0, len(found), SAMPLES)]


def saved_ahead(run: Path) -> dict[str, bool]:
    return {folder.name: (folder / FILE).is_file() for folder in sorted((run / "checkpoints").iterdir())}


def test_a_step_is_sampled_while_the_one_before_trains(config: TrainConfig, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training does not go on before the server has answered everything about the next step: without overlap, nothing would."""
    windows = {}

    def wait(step: int) -> None:
        start, deadline = time.monotonic(), time.monotonic() + 600
        while len(server.times) < SAMPLES * min(step + 1, 4) and time.monotonic() < deadline:
            time.sleep(0.002)
        windows[step] = start, time.monotonic()

    at_update(monkeypatch, wait)
    run = train(config)
    assert len(server.times) == 4 * SAMPLES and versions(server) == [[0], [0], [1], [2]]
    for step in (1, 2, 3):
        asked = server.times[step * SAMPLES : (step + 1) * SAMPLES]
        assert asked[-1][1] <= windows[step][1] < server.updates[step], "before this step's weights go to the server"
        assert asked[0][0] > server.updates[step - 1]
    rows = read_metrics(run)
    assert [row["rollout/staleness"] for row in rows] == [0.0, 1.0, 1.0, 1.0]
    assert [row["time/rollout_hidden"] > 0 for row in rows] == [True, True, True, False]
    assert all(row["time/rollout_wait"] < row["time/rollout_hidden"] for row in rows[:3])
    assert rows[0]["rollout/mismatch_mean"] < 1e-5 < rows[1]["rollout/mismatch_mean"], "importance weights see the older policy"
    assert rows[1]["rollout/mismatch_ess"] < 1.0


def test_without_it_nothing_overlaps(config: TrainConfig, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    at_update(monkeypatch, lambda step: time.sleep(0.05) or seen.append(len(server.times)))
    run = train(changed(config, "rollout", ahead=0))
    assert seen == [SAMPLES, 2 * SAMPLES, 3 * SAMPLES, 4 * SAMPLES] and versions(server) == [[0], [1], [2], [3]]
    assert not any("staleness" in name or "hidden" in name for name in read_metrics(run)[0])
    assert all(row["time/rollout_wait"] == 0 for row in read_metrics(run)) and not any(saved_ahead(run).values())


CASES: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    "plain": lambda config: config,
    "evaluated": lambda config: changed(config, "eval", data="builtin:countdown", samples=1, limit=2, every=1),
    "refilled": lambda config: changed(config, "rollout", refill_rounds=1, refill="zero_variance"),
    "by difficulty": lambda config: changed(
        changed(config, "rollout", group_size=4), "difficulty", drop_solved=0.4, target=0.3, boost=2.0, unsolved=0.3
    ),
    "two updates": lambda config: changed(config, "optim", updates_per_step=2),
    "a function": lambda config: changed(config, "reward", functions=("tests.train.rewards.length",)),
}


@pytest.mark.parametrize("case", CASES)
def test_it_resumes_exactly(case: str, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From what a kill in step 3 leaves, while step 4 was being sampled: the samples of step 3 are in the checkpoint of step 2."""
    config, whole, run = CASES[case](config), tmp_path / "whole", Path(config.run.out)
    with monkeypatch.context() as patch:
        at_update(patch, lambda step: shutil.copytree(whole, run) if step == 3 else None)
        train(changed(config, "run", out=str(whole)))
    assert saved_ahead(run) == {"step_000002": True}
    train(config, resume=True)
    assert stable_rows(run) == stable_rows(whole)
    (model, moments, state), expected = final_state(run), final_state(whole)
    assert all(torch.equal(tensor, expected[0][name]) for name, tensor in model.items())
    for name, of_one in moments.items():
        assert all(torch.equal(of_one[key], expected[1][name][key]) for key in of_one), name
    assert state == expected[2] and read_evals(run) == read_evals(whole)
    assert saved_ahead(run) == {"step_000002": True, "step_000004": False}


def test_sigterm(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is finished, and so is the draw of the next one, which the checkpoint keeps."""
    config = changed(config, "run", save_every=0)
    whole = train(changed(config, "run", out=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        at_update(patch, lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None)
        with pytest.raises(Preempted, match="step 2 is saved"):
            train(config)
    run = Path(config.run.out)
    assert saved_ahead(run) == {"step_000002": True}
    train(config, resume=True)
    assert stable_rows(run) == stable_rows(whole)


@pytest.mark.parametrize(
    ("section", "values"), [("rollout", {"ahead": 0}), ("rollout", {"temperature": 0.7}), ("optim", {"prompts_per_step": 2})]
)
def test_other_options_after_a_resume(
    section: str, values: dict[str, Any], config: TrainConfig, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Samples that were drawn by other options are not trained; the weights of the checkpoint draw them."""
    at = changed(config, "run", steps=3)
    with pytest.MonkeyPatch.context() as patch:
        at_update(patch, lambda step: (_ for _ in ()).throw(KeyboardInterrupt) if step == 3 else None)
        with pytest.raises(KeyboardInterrupt):
            train(at)
    del server.times[:]
    run = train(changed(at, section, **values), resume=True)
    assert "step 3 is sampled anew: the checkpoint has samples of it that were drawn from other data or with other options" in "".join(
        capsys.readouterr()
    )
    assert {label.rpartition("-")[2] for _, _, label in server.times} == {"2"}
    assert read_metrics(run)[2].get("rollout/staleness", 0.0) == 0.0


def test_two_processes(config: TrainConfig, server: FakeServer, tmp_path: Path) -> None:
    """Each samples its share ahead; the whole batch is in the checkpoint, from which one process goes on. A failure on one ends both."""
    file, run = tmp_path / "config.json", Path(config.run.out)
    file.write_text(json.dumps(asdict(config)))
    lost = (400, {"error": {"message": "lost"}})
    with pytest.MonkeyPatch.context() as patch:
        refuse(server, patch, 2, lambda: lost)
        job = torchrun("-m", "aer_train", "train", "--config", file)
        _, err = job.communicate(timeout=400)
    assert job.returncode != 0 and "answered 400: lost" in err, err
    assert versions(server)[:3] == [[0], [0], [1]] and [row["rollout/staleness"] for row in read_metrics(run)] == [0.0, 1.0, 1.0]
    assert saved_ahead(run) == {"step_000002": True}
    before = stable_rows(run)[2]
    train(config, resume=True)
    assert stable_rows(run)[2]["reward/mean"] == before["reward/mean"], "the same samples"
    assert [row["rollout/staleness"] for row in read_metrics(run)] == [0.0, 1.0, 1.0, 1.0]


def refuse(server: FakeServer, monkeypatch: pytest.MonkeyPatch, version: int, answer: Callable[[], tuple[int, Any]]) -> None:
    """What the server does when it is asked for samples of these weights."""
    real = server.reply

    def reply(path: str, query: Any, body: Any) -> tuple[int, Any]:
        sampled = path == "/inference/v1/generate" and "prompt_logprobs" not in body["sampling_params"]
        return answer() if sampled and server.label.endswith(f"-{version}") else real(path, query, body)

    monkeypatch.setattr(server, "reply", reply)


def test_a_server_that_fails_meanwhile(
    config: TrainConfig, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The draw of step 3 fails while step 2 trains: step 2 is finished, recorded and saved; step 3 ends the run by the usual line."""
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    run = Path(config.run.out)
    with monkeypatch.context() as patch:
        refuse(server, patch, 1, lambda: (400, {"error": {"message": "too busy"}}))
        assert main(["train", "--config", str(tmp_path / "config.json")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and error.endswith("/inference/v1/generate answered 400: too busy")
    assert [row["step"] for row in read_metrics(run)] == [1, 2] and saved_ahead(run) == {"step_000002": False}
    train(config, resume=True)
    assert [row["rollout/staleness"] for row in read_metrics(run)] == [0.0, 1.0, 0.0, 1.0]


def test_a_server_that_was_restarted_meanwhile(config: TrainConfig, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def restart() -> tuple[int, Any]:
        versions = [{"version": "default", "start": 0, "end": 1}]
        return 200, {"choices": [{"token_ids": [1], "logprobs": {"content": [{"logprob": 0.0}]}, "weight_versions": versions}]}

    refuse(server, monkeypatch, 1, restart)
    with pytest.raises(SyncError, match=r"answered with the weights default in place of \w+-1"):
        train(config)
    assert len(read_metrics(Path(config.run.out))) == 2


def test_a_draw_that_nobody_waits_for(config: TrainConfig, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training fails while the server hangs in the draw of step 2: the run ends at once, and the draw by itself later."""
    served, goes_on = 0, threading.Event()

    def fail(step: int) -> None:
        raise FloatingPointError("the loss must be finite")

    real = server.generate

    def generate(prompt: list[int], sampling: dict[str, Any]) -> dict[str, Any]:
        nonlocal served
        served += "prompt_logprobs" not in sampling
        if served > SAMPLES:
            goes_on.wait(600)
        return real(prompt, sampling)

    monkeypatch.setattr(server, "generate", generate)
    at_update(monkeypatch, fail)
    with pytest.raises(FloatingPointError):
        train(config)
    (draw,) = [thread for thread in threading.enumerate() if thread.name == "ahead"]
    assert draw.is_alive() and draw.daemon, "neither the run nor a process that ends waits for it"
    goes_on.set()
    draw.join(120)
    assert not draw.is_alive()


def test_failing_rewards_are_told_at_their_step(config: TrainConfig, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of reward.functions that fails in the draw of step 2, with reward.on_failure stop."""
    real = PendingSum.result

    def result(self: PendingSum) -> list[Verdict]:
        if threading.current_thread().name == "ahead":
            raise ChildProcessError("reward.on_failure stop: crash")
        return real(self)

    monkeypatch.setattr(PendingSum, "result", result)
    with pytest.raises(ChildProcessError, match=r"reward.on_failure stop: crash"):
        train(config)
    assert len(read_metrics(Path(config.run.out))) == 1


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("rollout", {"ahead": 2}, r"rollout.ahead must be 0 or 1, got 2"),
        ("rollout", {"ahead": -1}, r"rollout.ahead must be 0 or 1, got -1"),
        ("rollout", {"backend": "hf"}, r"rollout.ahead must be 0 unless rollout.backend is vllm_server with vllm.urls, .*got 1"),
        ("rollout", {"backend": "vllm"}, r"rollout.ahead must be 0 unless rollout.backend is vllm_server with vllm.urls, .*got 1"),
        ("vllm", {"urls": ()}, r"rollout.ahead must be 0 unless rollout.backend is vllm_server with vllm.urls, .*got 1"),
        ("objective", {"mismatch": "off"}, r"objective.mismatch must not be off with rollout.ahead 1, .*got off"),
    ],
)
def test_what_is_refused(config: TrainConfig, section: str, values: dict[str, Any], message: str) -> None:
    bad = changed(config, section, **values)
    if section == "rollout" and "backend" in values:
        bad = changed(bad, "vllm", urls=())
    with pytest.raises(ValueError, match=message):
        check_config(bad)
    check_config(config)
