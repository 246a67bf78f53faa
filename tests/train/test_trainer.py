"""What a run leaves behind: metrics, samples, what it tells, and what stops it."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aer_kernels import EntropyControlConfig
from aer_train.clock import PARTS
from aer_train.config.tree import DataConfig, EvalConfig, OptimConfig, RewardConfig, RolloutConfig, TrainConfig
from aer_train.run.folder import read_metrics
from aer_train.step import passes
from aer_train.step.loss import MicroLoss
from aer_train.trainer import train
from tests.train.conftest import save_byte_model
from tests.train.same_run import changed, stable_rows


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
