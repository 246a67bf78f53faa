"""Processes that train together: what they say to each other, that they train what one process trains, and what happens when one fails."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from aer_kernels import EntropyControlConfig
from aer_kernels.methods import (
    AresConfig,
    ARMConfig,
    EntrocraftConfig,
    ERCConfig,
    ForkingTokensConfig,
    PositiveAdvantageConfig,
    RelaxConfig,
    TokenTargetsConfig,
    method_class,
    method_for,
)
from aer_kernels.methods.seam import moves
from aer_train import cli, dist
from aer_train.config.parse import read_config
from aer_train.config.tree import (
    DataConfig,
    DifficultyConfig,
    EvalConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    TrainConfig,
)
from aer_train.evaluation.folder import evaluate_model
from aer_train.model import resolve_device
from aer_train.run import checkpoint
from aer_train.run.folder import read_evals, read_metrics
from aer_train.trainer import train
from tests.ranks import CPU, free_port, spawn
from tests.train.same_run import stable_rows

pytestmark = pytest.mark.slow


def test_one_process_needs_nobody() -> None:
    with dist.joined(CPU, 1.0):
        assert (dist.rank(), dist.world(), dist.is_main(), dist.local_rank(), dist.launched_rank()) == (0, 1, True, 0, 0)
        assert dist.all_gather("value") == ["value"] and dist.from_main(lambda: 3) == 3
        dist.barrier()
        dist.check_same("step", 1)
        assert not torch.distributed.is_initialized()


def test_an_environment_that_is_not_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    expected = "WORLD_SIZE must be 1 or come with what torchrun sets beside it, got 4 without LOCAL_RANK, MASTER_ADDR, MASTER_PORT"
    with pytest.raises(ValueError, match=expected), dist.joined(CPU, 1.0):
        pass


def test_every_process_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda", 0), "a process by itself"
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", rank)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="--nproc-per-node must be at most the number of GPUs, 2, got local rank 2"):
        resolve_device("auto")
    assert resolve_device("cpu") == CPU


OPTIM = OptimConfig(lr=3e-3, prompts_per_step=6, tokens_per_microbatch=64)

TOGETHER = method_class("relax+arm+kl_cov+ares").Config(
    relax=RelaxConfig(alpha=3.0, modes=2), arm=ARMConfig(alpha=1.0, gate="none_right"), ares=AresConfig(window=2)
)
"""All that a method can ask for beside entropies: hidden states, prompts, rewards."""


def several(kind: str, **options: dict[str, Any]) -> dict[str, Any]:
    """A way with methods that move different things; at the first update of a batch some would do nothing."""
    parts = {name: method_class(name).Config(**options.get(name, {})) for name in kind.split("+")}
    return {"method": method_class(kind).Config(**parts), "optim": replace(OPTIM, updates_per_step=2)}


WAYS = {
    "token_mean": {"optim": OPTIM},
    "sequence_mean": {"objective": ObjectiveConfig(aggregation="sequence_mean"), "optim": replace(OPTIM, updates_per_step=2)},
    "constant": {
        "data": DataConfig(),
        "objective": ObjectiveConfig(aggregation="constant", advantage="rloo"),
        "optim": replace(OPTIM, prompts_per_step=5),
        "rollout": RolloutConfig(group_size=2, max_new_tokens=6, batch_size=10, refill_rounds=2, refill="zero_variance", overlong="mask"),
    },
    "gspo": {
        "objective": ObjectiveConfig(kind="gspo", aggregation="sequence_mean"),
        "optim": replace(OPTIM, prompts_per_step=2, updates_per_step=2, tokens_per_microbatch=10_000),
    },
    "forking_tokens": {"method": ForkingTokensConfig(), "optim": replace(OPTIM, updates_per_step=2)},
    "positive_advantage": {"method": PositiveAdvantageConfig(target=2.0, start=0.5), "optim": OPTIM},
    "erc": {"method": ERCConfig(), "optim": replace(OPTIM, updates_per_step=2)},
    "difficulty": {
        "data": DataConfig(limit=9),
        "difficulty": DifficultyConfig(drop_solved=1.0, target=0.8, boost=2.0, unsolved=0.95),
        "optim": replace(OPTIM, updates_per_step=2),
    },
    "together": {"method": TOGETHER, "optim": replace(OPTIM, updates_per_step=2)},
    "clip_cov+siren": several("clip_cov+siren", clip_cov={"share": 0.1, "low": 0.05}, siren={"beta": 1.0}),
    "steer+aent": several("steer+aent", steer={"form": "exact", "least": 0.3}, aent={"start": 0.1, "most": 0.2, "dropped": 0.4}),
    "stare+adapo": several("stare+adapo", stare={"target": 5.0, "step": 0.1}, adapo={"step": 0.01, "start": 0.0, "least": 0.0}),
    "pepo+entropy_advantage+epo+mai_clip": several(
        "pepo+entropy_advantage+epo+mai_clip", epo={"coef": 0.1, "low": 0.9, "high": 1.1, "alpha": 1.0}, mai_clip={"eps": 0.01}
    ),
    "repo_r+entropic": several("repo_r+entropic", repo_r={"start": 0.05}, entropic={"target": 2.0, "confident": 0.2}),
    "entrocraft": {"method": EntrocraftConfig(target=9.0), "optim": replace(OPTIM, updates_per_step=2)},
    "token_targets": {
        "method": TokenTargetsConfig(tau=1.5, ahead=3.0, min_coef=-0.3, forward=0.5),
        "optim": replace(OPTIM, updates_per_step=2),
    },
}
"""By aggregation and method; with one update and two, shares that are not equal, refill and masking (constant), an empty micro-batch (gspo)."""


def config_of(model: Path, out: Path, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        model=ModelConfig(name=str(model)),
        data=DataConfig(limit=96),
        rollout=RolloutConfig(group_size=4, max_new_tokens=6, batch_size=10),
        reward=RewardConfig(kind="tests.train.rewards.digit_share", workers=1),
        method=EntropyControlConfig(target=5.0),
        run=RunConfig(out=str(out), steps=3, threads=1, save_every=2, bonus_share_every=2),
    )
    return replace(config, **changes)


def ways(models: dict[str, Path], out: Path) -> dict[str, TrainConfig]:
    """Every way of training with both models in turn."""
    found = {way: config_of(models["untied" if i % 2 else "tied"], out / way, **changes) for i, (way, changes) in enumerate(WAYS.items())}
    evaluation = EvalConfig(data="builtin:countdown", samples=2, limit=5)
    return found | {"token_mean": replace(found["token_mean"], eval=evaluation)}


def evaluation_of(model: Path) -> TrainConfig:
    return config_of(model, Path(), eval=EvalConfig(data="builtin:countdown", samples=3, limit=7))


def after_two_steps(run: Path, copy: Path) -> TrainConfig:
    """The configuration of a copy of a run of three steps, taken back to its second."""
    if dist.is_main():
        shutil.copytree(run, copy)
        shutil.rmtree(copy / "checkpoints" / "step_000003")
    config = read_config(run / "config.json")
    return replace(config, run=replace(config.run, out=str(copy)))


def together(models: dict[str, Path], out: Path) -> None:
    """What two ranks do: all the ways, and the last step of a run of one process."""
    for config in ways(models, out / "two").values():
        train(config)
    evaluate_model(str(models["untied"]), evaluation_of(models["untied"]), out / "two" / "evaluation")
    train(after_two_steps(out / "one" / "token_mean", out / "one_then_two"), resume=True)


@pytest.fixture(scope="module")
def runs(model_folder: Path, untied_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the same runs of one process and of two."""
    out, models = tmp_path_factory.mktemp("runs"), {"tied": model_folder, "untied": untied_folder}
    for config in ways(models, out / "one").values():
        train(config)
    evaluate_model(str(untied_folder), evaluation_of(untied_folder), out / "one" / "evaluation")
    spawn(together, 2, out, models, out)
    return out


def assert_same_training(one: Path, two: Path) -> None:
    """The same metrics, samples, evaluations and weights, to the rounding of float32."""
    rows, others = stable_rows(one), stable_rows(two)
    assert len(rows) == len(others) == 3
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        row.pop("tokens/padding_frac")  # two ranks pack otherwise
        for name, value in row.items():
            near = {"rel": 1e-4, "abs": 1e-5} if isinstance(value, float) else {}
            assert other[name] == pytest.approx(value, **near) if near else other[name] == value, f"{name} at step {row['step']}"
    for path in (one / "samples").iterdir():
        mine, theirs = (pq.read_table(folder / "samples" / path.name).to_pylist() for folder in (one, two))
        assert [row["response"] for row in mine] == [row["response"] for row in theirs]
    assert read_evals(one) == read_evals(two)
    weights, found = (load_file(checkpoint.latest(run) / "model.safetensors") for run in (one, two))
    assert weights.keys() == found.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_train_what_one_does(way: str, runs: Path) -> None:
    assert_same_training(runs / "one" / way, runs / "two" / way)
    bonus = "entropy_coef" in moves(method_for(read_config(runs / "two" / way / "config.json").method, 3))
    assert (stable_rows(runs / "two" / way)[1]["optim/bonus_share"] > 0) == bonus
    if way == "constant":
        rows = stable_rows(runs / "two" / way)
        assert all(sum(row[name] for row in rows) > 0 for name in ("refill/groups_replaced", "tokens/masked_frac")), "the case must refill"


def test_an_evaluation_is_shared(runs: Path) -> None:
    one, two = (json.loads((runs / name / "evaluation" / "eval.json").read_text()) for name in ("one", "two"))
    assert one == two and one["tiers"]["all"]["problems"] == 7
    rows = [pq.read_table(runs / name / "evaluation" / "samples").to_pylist() for name in ("one", "two")]
    assert rows[0] == rows[1] and len(rows[0]) == 21


def test_a_run_goes_on_with_another_number_of_ranks(runs: Path) -> None:
    assert_same_training(runs / "one" / "token_mean", runs / "one_then_two")
    train(after_two_steps(runs / "two" / "token_mean", runs / "two_then_one"), resume=True)
    assert_same_training(runs / "one" / "token_mean", runs / "two_then_one")


BROKEN = """
import sys
from aer_train import dist
from aer_train.step import passes
from aer_train.cli import main


real, calls = passes.policy_loss, []

def breaking(*args, **kwargs):
    calls.append(1)
    if dist.rank() == 1 and not dist.restarted() and len(calls) == 20:
        raise ValueError("broken on purpose")
    return real(*args, **kwargs)

passes.policy_loss = breaking
sys.exit(main(sys.argv[1:]))
"""


def torchrun(*args: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_job_fails_with_its_rank_is_restarted_and_interrupted(model_folder: Path, tmp_path: Path) -> None:
    """The rank that fails says why; torchrun starts the job again, which goes on from its checkpoint, until an interrupt ends it."""
    run, file = tmp_path / "run", tmp_path / "settings.json"
    config = config_of(model_folder, run, optim=OPTIM, run=RunConfig(out=str(run), steps=100_000, threads=1, save_every=2))
    file.write_text(json.dumps(asdict(config)))
    (tmp_path / "broken.py").write_text(BROKEN)
    job, deadline = torchrun("--max-restarts", "1", tmp_path / "broken.py", "train", "--config", file), time.monotonic() + 200
    while job.poll() is None and time.monotonic() < deadline and not ((last := checkpoint.latest(run)) and last.name >= "step_000010"):
        time.sleep(0.05)
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=60)
    assert job.returncode != 0
    assert err.count("rank 1 error: broken on purpose") == 1 and "rank0" not in err, err
    assert out.count(f"interrupted; go on from the last checkpoint with: aer-train train --resume {run}") == 1 == err.count("interrupted\n")
    done = int(checkpoint.latest(run).name.removeprefix("step_"))
    assert done >= 10, "the broken job reached step 6"
    train(replace(config, run=replace(config.run, steps=done + 1)), resume=True)
    assert [row["step"] for row in read_metrics(run)] == list(range(1, done + 2)), "one process goes on"


def test_the_first_rank_speaks_for_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "GRACE_SECONDS", 0.0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, told in (("0", "error"), ("1", "rank 1 error")):
        monkeypatch.setenv("RANK", rank)
        with contextlib.redirect_stdout(io.StringIO()):  # the other rank's goes nowhere
            assert cli.main(["train", "--run.steps", "0"]) == 2 == cli.main(["doctor"])
        expected = "run.steps must be >= 1, got 0", "command must be train or eval under torchrun, got 'doctor'"
        assert capsys.readouterr().err == "".join(f"{told}: {line}\n" for line in expected)
