"""vLLM lane: a policy in bfloat16, whose rounding keeps the engine's log-probs apart from the trainer's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aer_train.config.tree import ModelConfig, TrainConfig
from aer_train.model import Policy, load_policy
from aer_train.rollout.backends import make_rollout
from aer_train.rollout.engine import EngineRollout
from aer_train.rollout.protocol import SyncError
from aer_train.run.folder import read_metrics
from aer_train.step.batching import micro_batches
from aer_train.step.loss import measure
from aer_train.step.padding import pad_id
from aer_train.trainer import train
from aer_train.types import Sample
from tests.train.test_vllm import PROMPTS, configuration, save_random_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.usefixtures("kept_engine"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose logits lie far from 0, all together, as those of pretrained models may: there bfloat16 is coarse."""
    return save_random_model(tmp_path_factory.mktemp("shared"), tied=False, shared=16.0)


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> TrainConfig:
    return replace(configuration(folder, tmp_path / "run"), model=ModelConfig(name=str(folder), dtype="bfloat16"))


def rounded_head(config: TrainConfig, probe_tolerance: float | None = None) -> TrainConfig:
    """With what vLLM does unless it is told otherwise."""
    arguments = (*config.vllm.engine_args, 'hf_overrides={"head_dtype": "model"}')
    return replace(config, vllm=replace(config.vllm, engine_args=arguments, probe_tolerance=probe_tolerance))


def mismatch(config: TrainConfig) -> tuple[torch.dtype, float]:
    """The dtype of the engine's logits, and the mean |difference| of the log-probs of samples, nats."""
    policy = load_policy(config.model, torch.device("cpu"))
    rollout = make_rollout(config, policy, PROMPTS, Path(config.run.out))
    assert isinstance(rollout, EngineRollout)
    rollout.sync(0)
    dtype = rollout.engine._llm.llm_engine.vllm_config.model_config.head_dtype  # type: ignore[attr-defined]
    found = differences(policy, rollout.generate(PROMPTS, 8, (0, "train", 1)), config.rollout.temperature)
    rollout.close()
    return dtype, found.mean().item()


def differences(policy: Policy, samples: list[Sample], temperature: float) -> torch.Tensor:
    """(tokens,) |difference| of their log-probs as the trainer measures them and as they were recorded, nats."""
    micros = micro_batches(samples, range(len(samples)), None, tokens_per_microbatch=4096, pad_id=pad_id(policy), device=policy.device)
    return torch.cat([(measure(policy, m, temperature=temperature)["logprobs"] - m.rollout_logprobs)[m.loss_mask].abs() for m in micros])


def test_three_steps_in_bfloat16(config: TrainConfig) -> None:
    """Every update arrives, in weights that are rounded."""
    rows = read_metrics(train(config))
    assert len(rows) == 3
    for row in rows:
        assert row["rollout/mismatch_mean"] < 0.03 and row["rollout/probe_mean"] < 0.03
        assert row["rollout/probe_moved"] > 0.05, "the policy has changed"
        assert row["rollout/probe_followed"] == pytest.approx(row["rollout/probe_moved"], rel=0.1)


def test_the_float32_head_takes_the_rounding_of_logits_away(config: TrainConfig) -> None:
    """Measured: 0.018 nats, and 0.123 with logits in bfloat16. What is left is the rounding of the layers below."""
    exact, rounded = mismatch(config), mismatch(rounded_head(config, probe_tolerance=1.0))
    assert (exact[0], rounded[0]) == (torch.float32, torch.bfloat16)
    assert exact[1] < 0.03 and rounded[1] > 4 * exact[1]


def test_the_probe_stops_a_run_whose_logits_are_rounded_too_much(config: TrainConfig) -> None:
    with pytest.raises(SyncError, match=r"differ from the trainer's by 0\.[1-9]\d* nats on average .*, vllm.probe_tolerance is 0.05"):
        train(rounded_head(config))
