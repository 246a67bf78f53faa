import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aer_kernels import EntropyControlConfig
from aer_train.clock import PARTS
from aer_train.config.tree import DataConfig, EvalConfig, ModelConfig, OptimConfig, RewardConfig, RolloutConfig, RunConfig, TrainConfig
from aer_train.run import checkpoint
from aer_train.run.folder import read_evals, read_metrics
from aer_train.run.lock import RunLock
from aer_train.step import passes
from aer_train.step.loss import MicroLoss
from aer_train.trainer import train
from tests.train.conftest import save_byte_model

VOLATILE = ("time/", "time_share/", "perf/", "memory/")


@pytest.fixture
def config(model_folder: Path, tmp_path: Path) -> TrainConfig:
    """Four steps of the tiny policy; the target entropy is out of reach, so that the controller always moves."""
    return TrainConfig(
        model=ModelConfig(name=str(model_folder)),
        data=DataConfig(limit=96),
        rollout=RolloutConfig(group_size=4, max_new_tokens=6),
        reward=RewardConfig(kind="countdown"),
        method=EntropyControlConfig(target=5.0),
        optim=OptimConfig(lr=3e-3, prompts_per_step=6, updates_per_step=2, tokens_per_microbatch=64),
        run=RunConfig(out=str(tmp_path / "run"), steps=4, threads=1, save_every=2),
    )


def changed(config: TrainConfig, section: str, **values: Any) -> TrainConfig:
    return replace(config, **{section: replace(getattr(config, section), **values)})


def stable_rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(VOLATILE)} for row in read_metrics(run)]


def final_state(run: Path) -> tuple[dict[str, torch.Tensor], Any, Any]:
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    folder = checkpoint.latest(run)
    state = json.loads((folder / "state.json").read_text())
    del state["files"]  # their metadata has an identifier of its own every time
    dcp_to_torch_save(folder / "optimizer", run / "optimizer.pt")
    return load_file(folder / "model.safetensors"), torch.load(run / "optimizer.pt")["state"], state


def checkpoint_state(run: Path) -> dict[str, Any]:
    return json.loads((checkpoint.latest(run) / "state.json").read_text())


def assert_same_run(a: Path, b: Path) -> None:
    assert stable_rows(a) == stable_rows(b)
    (weights_a, optimizer_a, state_a), (weights_b, optimizer_b, state_b) = final_state(a), final_state(b)
    assert state_a == state_b
    assert weights_a.keys() == weights_b.keys() and all(torch.equal(weights_a[k], weights_b[k]) for k in weights_a)
    assert optimizer_a.keys() == optimizer_b.keys()
    for key, values in optimizer_a.items():
        assert all(torch.equal(values[name], optimizer_b[key][name]) for name in values)
    samples = [sorted((run / "samples").iterdir()) for run in (a, b)]
    assert [p.name for p in samples[0]] == [p.name for p in samples[1]]
    assert all(x.read_bytes() == y.read_bytes() for x, y in zip(*samples, strict=True))


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
@pytest.mark.parametrize("save_every", [1, 3])
def test_the_parts_of_the_time_add_up(config: TrainConfig, save_every: int) -> None:
    config = replace(changed(config, "run", save_every=save_every), eval=EvalConfig(data="builtin:countdown", every=2, samples=1, limit=2))
    begin = time.perf_counter()
    rows = read_metrics(train(config))
    elapsed = time.perf_counter() - begin
    for row in rows:
        parts = [row[f"time/{part}"] for part in PARTS]
        assert sum(parts) == pytest.approx(row["time/step"], rel=1e-9) and min(parts) >= 0
        assert sum(row[f"time_share/{part}"] for part in PARTS) == pytest.approx(1.0)
        assert row["time/rollout"] > 0 and row["time/old_logprobs"] > 0 and row["time/train"] > 0 and row["time/record"] > 0
    assert sum(row["time/step"] for row in rows) < elapsed
    assert [row["time/eval"] > 0 for row in rows] == [True, True, False, True], "the first row holds the evaluation before it"
    written = [step % save_every == 0 for step in range(4)]
    assert [row["time/checkpoint"] > 0 for row in rows] == [False, *written[1:]], "a checkpoint follows its row: the next one holds it"


def test_overlong_responses(config: TrainConfig) -> None:
    config = replace(
        changed(config, "run", steps=1),
        rollout=RolloutConfig(group_size=4, max_new_tokens=6, overlong="mask"),
        reward=RewardConfig(kind="tests.train.rewards.digit_share", workers=1, overlong_buffer=3, overlong_penalty=0.6),
    )
    import pyarrow.parquet as pq

    run = train(config)
    (row,) = read_metrics(run)
    samples = pq.read_table(run / "samples" / "step_000001.parquet").to_pylist()
    cut = [s for s in samples if not s["finished"]]
    assert 0 < len(cut) < len(samples) and row["tokens/truncated_frac"] == row["tokens/masked_frac"] == len(cut) / len(samples)
    assert all(s["trained"] == s["finished"] for s in samples)
    assert row["tokens/loss"] == sum(s["num_tokens"] for s in samples if s["finished"]) < row["tokens/generated"]
    for s in samples:
        assert s["shaped_reward"] == pytest.approx(s["reward"] - 0.6 * max(0, s["num_tokens"] - 3) / 3, abs=1e-6)
    assert row["reward/mean"] == row["reward/batch_mean"] > row["reward/shaped_mean"]


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


def test_metrics_of_a_step(config: TrainConfig) -> None:
    run = train(changed(config, "run", steps=2))
    first, second = read_metrics(run)
    for name in [
        "reward/mean",
        "reward/tier/easy",
        "reward/tier/hard",
        "entropy/tier/easy",
        "entropy/tier/hard",
        "reward/zero_variance_frac",
        "reward/unsolved_frac",
        "reward/all_correct_frac",
        "entropy/mean",
        "entropy/smoothed",
        "entropy/target",
        "entropy/initial",
        "entropy/coef",
        "entropy/coef_mean_token",
        "entropy/saturated",
        "entropy/per_response",
        "entropy/policy_slope",
        "entropy/bonus_slope",
        "entropy/predicted_change",
        "entropy/bonus_share",
        "policy/loss",
        "policy/clip_frac",
        "policy/ratio_mean",
        "policy/ratio_max",
        "policy/approx_kl",
        "rollout/mismatch_mean",
        "rollout/mismatch_max",
        "rollout/mismatch_sequence_max",
        "rollout/mismatch_kl",
        "rollout/mismatch_ess",
        "rollout/mismatch_over_cap",
        "rollout/version",
        "optim/grad_norm",
        "optim/lr",
        "tokens/response_mean",
        "tokens/truncated_frac",
        "tokens/loss",
        "tokens/padding_frac",
        "time/rollout",
        "time/verify_wait",
        "time/train",
        "time/eval",
        "time/step",
        "perf/tokens_per_second",
        "perf/rollout_tokens_per_second",
        "perf/train_tokens_per_second",
        "refill/groups_left",
        "memory/peak_mib",
    ]:
        assert name in second, name
    assert first["entropy/initial"] == first["entropy/mean"] == second["entropy/initial"]
    assert first["entropy/target"] == 5.0 and first["entropy/coef_mean_token"] == 0.0
    assert second["entropy/smoothed"] == pytest.approx(0.5 * first["entropy/mean"] + 0.5 * second["entropy/mean"])
    assert second["entropy/per_response"] == pytest.approx(second["entropy/mean"] * second["tokens/response_mean"])
    assert second["entropy/coef_mean_token"] == pytest.approx(second["entropy/coef"], rel=1e-6), "all prompts failed: every weight is 1"
    assert first["entropy/predicted_change"] == first["entropy/policy_slope"] and first["entropy/bonus_slope"] > 0
    assert second["entropy/predicted_change"] == pytest.approx(second["entropy/coef"] * second["entropy/bonus_slope"])
    assert second["entropy/policy_slope"] == 0 and second["entropy/bonus_share"] == 1.0, "all prompts failed: only the bonus moves"
    assert second["tokens/response_mean"] * 24 == second["tokens/loss"]
    assert second["rollout/mismatch_mean"] < 1e-4
    assert first["optim/lr"] == pytest.approx(3e-3 * 2 / 5)
    assert sum(value for name, value in second.items() if name.startswith("outcome/")) == pytest.approx(1.0)


@pytest.mark.slow
def test_entropy_is_that_of_the_policy_that_sampled(config: TrainConfig, tmp_path: Path) -> None:
    rows = []
    for updates in (1, 2, 3):
        out = str(tmp_path / str(updates))
        rows.append(read_metrics(train(changed(changed(config, "optim", updates_per_step=updates), "run", out=out, steps=1)))[0])
    assert rows[0]["entropy/mean"] == pytest.approx(rows[1]["entropy/mean"], rel=1e-6) == pytest.approx(rows[2]["entropy/mean"], rel=1e-6)


def test_the_samples_say_what_happened(config: TrainConfig) -> None:
    import pyarrow.parquet as pq

    run = train(changed(config, "run", steps=1))
    rows = pq.read_table(run / "samples" / "step_000001.parquet").to_pylist()
    assert len(rows) == 24
    assert list(rows[0]) == [
        "step", "prompt_id", "tier", "prompt", "response", "answer", "other_answers", "extracted", "outcome", "detail", "reward", "shaped_reward", "advantage",
        "num_tokens", "finished", "entropy_coef", "trained", "version",
    ]  # fmt: skip
    assert len({row["prompt_id"] for row in rows}) == 6 and len({row["response"] for row in rows[:4]}) > 1


@pytest.mark.slow
def test_reward_rises(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("".join(f'{{"problem": "{i}+{i}=?", "answer": "{2 * i}"}}\n' for i in range(20)))
    config = replace(
        config,
        data=DataConfig(train=str(tmp_path / "data.jsonl")),
        rollout=RolloutConfig(group_size=8, max_new_tokens=3),
        reward=RewardConfig(kind="tests.train.rewards.digit_share", workers=1),
        method=EntropyControlConfig(tau=0.7),
        optim=OptimConfig(lr=1e-2, prompts_per_step=8, warmup_steps=0),
        run=replace(config.run, steps=12),
    )
    rewards = [row["reward/mean"] for row in stable_rows(train(config))]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15


def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(config, "reward", kind="tests.train.rewards.digit_share")  # the first step has advantages
    seen, real = [], passes.policy_loss

    def broken(policy: Any, *args: Any, **kwargs: Any) -> MicroLoss:
        output = real(policy, *args, **kwargs)
        seen.append([p.detach().clone() for p in policy.model.parameters()] + list(policy.model.parameters()))
        return replace(output, loss=output.loss * torch.nan)

    monkeypatch.setattr(passes, "policy_loss", broken)
    with pytest.raises(FloatingPointError, match="loss must be finite, got nan at step 1; this update was not applied"):
        train(config)
    before, after = seen[0][: len(seen[0]) // 2], seen[0][len(seen[0]) // 2 :]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert (Path(config.run.out) / "samples" / "step_000001.parquet").is_file()


@pytest.mark.slow
def test_answers_that_cannot_be_read_are_named(config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"problem": "1+1=?", "answer": "2"}\n{"problem": "1+2=?", "answer": ""}\n')
    config = replace(config, data=DataConfig(train=str(data)), reward=RewardConfig(kind="math"))
    train(changed(config, "run", steps=1))
    assert f"{data}: 1 of 2 prompts dropped, whose answer cannot be read (prompt 1: '')" in capsys.readouterr().out
    data.write_text('{"problem": "1+2=?", "answer": ""}\n')
    with pytest.raises(ValueError, match=r"data.answer_column must hold answers that reward.kind math can read, got ''"):
        train(changed(config, "run", out=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists(), "nothing is left behind"


@pytest.mark.parametrize(("chat", "hints"), [(False, 1), (True, 0)])
def test_a_chat_template_that_is_not_used_is_told(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], chat: bool, hints: int
) -> None:
    save_byte_model(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text('{"problem": "1+1=?", "answer": "2"}\n')
    config = changed(config, "model", name=str(tmp_path / "model"))
    config = replace(config, data=DataConfig(train=str(tmp_path / "data.jsonl"), chat=chat), reward=RewardConfig(kind="math"))
    train(changed(changed(config, "optim", prompts_per_step=1, updates_per_step=1), "run", steps=1))
    assert capsys.readouterr().out.count("hint: the tokenizer has a chat template that is not used") == hints


@pytest.mark.parametrize(("coef", "hints"), [(0.0, 1), (0.1, 0)])
def test_a_fixed_coefficient_of_0_is_told(config: TrainConfig, capsys: pytest.CaptureFixture[str], coef: float, hints: int) -> None:
    config = replace(config, method=EntropyControlConfig(kind="fixed", coef=coef))
    train(changed(config, "run", steps=1))
    assert capsys.readouterr().out.count("hint: method.coef is 0, so there is no bonus") == hints


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
