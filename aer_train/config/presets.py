"""Configurations to start from, as functions.

`countdown` has the form of AER that the study measured. The others are for pretrained models: they hold entropy below its start, and do
not explore above it. Their gains were tried on one pretrained model (docs/real_model.md), their target was not.
"""

from __future__ import annotations

from collections.abc import Callable

from aer_kernels import BELOW_START, EXPLORE_THEN_SETTLE
from aer_train.config.tree import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    TrainConfig,
)

BOXED = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}."


def countdown() -> TrainConfig:
    """The embedded task on a CPU: a 0.6M-parameter policy, about a minute on one core."""
    return TrainConfig(
        rollout=RolloutConfig(group_size=8, max_new_tokens=6),
        reward=RewardConfig(kind="countdown"),
        method=EXPLORE_THEN_SETTLE,
        optim=OptimConfig(lr=2e-4, betas=(0.9, 0.99), warmup_steps=5, prompts_per_step=32, updates_per_step=2),
        eval=EvalConfig(data="builtin:countdown", samples=16),
        run=RunConfig(out="runs/countdown", steps=140, save_every=20),
    )


def gsm8k() -> TrainConfig:
    """Grade-school word problems with a 0.5B instruct model on one small GPU.

    This form of AER has not been run on it here.
    """
    return TrainConfig(
        model=ModelConfig(name="Qwen/Qwen2.5-0.5B-Instruct", gradient_checkpointing=True),
        data=DataConfig(train="openai/gsm8k:main", prompt_column="question", chat=True, template=BOXED, max_prompt_tokens=512),
        rollout=RolloutConfig(group_size=8, max_new_tokens=512),
        method=BELOW_START,
        optim=OptimConfig(lr=1e-6, prompts_per_step=32),
        eval=EvalConfig(data="openai/gsm8k:main", every=50, samples=4, limit=256),
        run=RunConfig(out="runs/gsm8k", steps=300, save_every=50),
    )


def qwen3_4b_dapo() -> TrainConfig:
    """Competition mathematics with Qwen3-4B-Base: the setting in which AER was published, with its target of 0.4 of the initial entropy.

    This form of AER has not been run on it here.
    """
    return _dapo("Qwen/Qwen3-4B-Base", "runs/qwen3_4b_dapo")


def qwen3_8b_dapo() -> TrainConfig:
    """As qwen3_4b_dapo, with Qwen3-8B-Base. This form of AER has not been run on it here either."""
    return _dapo("Qwen/Qwen3-8B-Base", "runs/qwen3_8b_dapo")


def _dapo(model: str, out: str) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(name=model, gradient_checkpointing=True),
        data=DataConfig(train="open-r1/DAPO-Math-17k-Processed:en", prompt_column="prompt", answer_column="solution", template=BOXED),
        rollout=RolloutConfig(group_size=8, max_new_tokens=8192, batch_size=128),
        objective=ObjectiveConfig(clip_high=0.28),
        method=BELOW_START,
        optim=OptimConfig(lr=1e-6, prompts_per_step=64, warmup_steps=10),
        run=RunConfig(out=out, steps=500, save_every=50),
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    function.__name__: function for function in (countdown, gsm8k, qwen3_4b_dapo, qwen3_8b_dapo)
}
