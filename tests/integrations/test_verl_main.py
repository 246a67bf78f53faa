"""verl's main to its end on a CPU: Ray, TransferQueue, FSDP2 worker, rollout server, agent loop, validation, checkpoints; by the example."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("verl") is None:
    pytest.skip("verl is not installed", allow_module_level=True)

pytestmark = pytest.mark.verl

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "data.train_batch_size=8",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.rollout.val_kwargs.n=4",
    "trainer.save_freq=1",
]

LIBRARIES = ["torch", "tensordict", "transformers.models.qwen3.modeling_qwen3", "peft", "hydra", "aiohttp", "fastapi", "uvicorn"]
"""What verl imports."""


@pytest.fixture(scope="module")
def workers() -> Iterator[str]:
    """An override: Ray's workers come from one process that has imported the libraries."""
    program = [sys.executable, str(Path(__file__).with_name("ray_workers.py"))]
    with tempfile.TemporaryDirectory() as folder:
        path, one_thread = f"{folder}/socket", {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            [*program, "serve", path, *LIBRARIES], stdout=subprocess.PIPE, text=True, env=os.environ | one_thread
        ) as server:
            assert server.stdout is not None and server.stdout.readline() == "listening\n"
            yield f"+ray_kwargs.ray_init.runtime_env.py_executable='{program[0]} -S {program[1]} run {path}'"
            server.terminate()


def example(out: Path, methods: str, steps: int, *overrides: str) -> list[list[str]]:
    """Run examples/verl_countdown.sh, and return the rows of its table."""
    settings = {"OUT": str(out), "METHODS": methods, "STEPS": str(steps), "SEEDS": "3", "PROMPTS": "8", "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "examples" / "verl_countdown.sh"), *SMALL, *overrides]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def logged(out: Path, name: str) -> list[dict[str, Any]]:
    """What verl logged at each step."""
    return [json.loads(line)["data"] for line in (out / f"{name}-3.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verl")


def test_the_example(out: Path, workers: str) -> None:
    """A row a method; AER's coefficient moves and reaches the loss, its first batch is plain GRPO's, and the second update differs."""
    rows = example(out, "plain AER", 2, workers)
    assert [row[:2] for row in rows] == [["plain", "3"], ["AER", "3"]]
    assert all(0 <= float(cell) <= 1 for row in rows for cell in row[2:6]) and all(float(row[2]) > 0.4 for row in rows)
    plain, ours = logged(out, "plain"), logged(out, "AER")
    assert len(plain) == len(ours) == 2 and not any(name.startswith("aer/") or "aer_" in name for step in plain for name in step)
    assert ours[0]["aer/coef"] == 0 < ours[1]["aer/coef"] and ours[1]["actor/aer_bonus"] > 0
    assert ours[0]["aer/controlled"] == pytest.approx(ours[0]["aer/initial"]) and ours[0]["actor/entropy"] < ours[0]["aer/initial"]
    assert not (out / "plain-3" / "checkpoints" / "global_step_2" / "aer_state.json").exists()
    assert json.loads((out / "AER-3" / "checkpoints" / "global_step_2" / "aer_state.json").read_text())["updates"] == 2


def test_resumed_in_another_mode(out: Path, workers: str) -> None:
    """From the last checkpoint, asynchronous and in bypass_mode, whose entropy is that of the sampled log-probs."""
    before = json.loads((out / "AER-3" / "checkpoints" / "global_step_2" / "aer_state.json").read_text())
    bypass = ["algorithm.rollout_correction.bypass_mode=True", "actor_rollout_ref.actor.policy_loss.loss_mode=bypass_mode"]
    example(out, "AER", 3, workers, "trainer.resume_mode=auto", "trainer.v1.trainer_mode=colocate_async", *bypass)
    (step,) = logged(out, "AER")
    after = json.loads((out / "AER-3" / "checkpoints" / "global_step_3" / "aer_state.json").read_text())
    assert after["updates"] == 3 and after["initial_entropy"] == before["initial_entropy"] == pytest.approx(step["aer/initial"])
    assert "actor/entropy" not in step and 0.3 * before["initial_entropy"] < step["aer/controlled"] < 3 * before["initial_entropy"]
