"""Configurations that are known to work, as functions."""

from __future__ import annotations

from collections.abc import Callable

from aer_kernels import EntropyControlConfig
from aer_train.config import (
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

EXPLORE_THEN_SETTLE = EntropyControlConfig(quantity="response", tau=1.2, tau_end=0.6, hold=0.4, difficulty="uniform", surplus=1.0)
"""AER with the parts that docs/study.md shows to help: more entropy than at the start for two fifths of the run, then less and less.
Without weights by accuracy, which do nothing there where prompts are of one kind and cost hard ones where they are not, and settling by
the clock: as good there as waiting until prompts begin to be solved, and the target is held better."""


def countdown() -> TrainConfig:
    """The embedded task on a CPU: a 0.6M-parameter policy, about a minute on one core."""
    return TrainConfig(
        rollout=RolloutConfig(group_size=8, max_new_tokens=6),
        reward=RewardConfig(kind="countdown"),
        entropy=EXPLORE_THEN_SETTLE,
        optim=OptimConfig(lr=2e-4, betas=(0.9, 0.99), warmup_steps=5, prompts_per_step=32, updates_per_step=2),
        eval=EvalConfig(data="builtin:countdown", samples=16),
        run=RunConfig(out="runs/countdown", steps=140, save_every=20),
    )


def gsm8k() -> TrainConfig:
    """Grade-school word problems with a 0.5B instruct model on one small GPU."""
    return TrainConfig(
        model=ModelConfig(name="Qwen/Qwen2.5-0.5B-Instruct", gradient_checkpointing=True),
        data=DataConfig(train="openai/gsm8k:main", prompt_column="question", chat=True, template=BOXED, max_prompt_tokens=512),
        rollout=RolloutConfig(group_size=8, max_new_tokens=512),
        entropy=EXPLORE_THEN_SETTLE,
        optim=OptimConfig(lr=1e-6, prompts_per_step=32),
        eval=EvalConfig(data="openai/gsm8k:main", every=50, samples=4, limit=256),
        run=RunConfig(out="runs/gsm8k", steps=300, save_every=50),
    )


def qwen3_4b_dapo() -> TrainConfig:
    """Competition mathematics with Qwen3-4B-Base: the setting in which AER was published, with its target of 0.4 of the initial entropy."""
    return _dapo("Qwen/Qwen3-4B-Base", "runs/qwen3_4b_dapo")


def qwen3_8b_dapo() -> TrainConfig:
    """As qwen3_4b_dapo, with Qwen3-8B-Base."""
    return _dapo("Qwen/Qwen3-8B-Base", "runs/qwen3_8b_dapo")


def _dapo(model: str, out: str) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(name=model, gradient_checkpointing=True),
        data=DataConfig(train="open-r1/DAPO-Math-17k-Processed:en", prompt_column="prompt", answer_column="solution", template=BOXED),
        rollout=RolloutConfig(group_size=8, max_new_tokens=8192, batch_size=128),
        objective=ObjectiveConfig(clip_high=0.28),
        entropy=EntropyControlConfig(tau=0.4),
        optim=OptimConfig(lr=1e-6, prompts_per_step=64, warmup_steps=10),
        run=RunConfig(out=out, steps=500, save_every=50),
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    function.__name__: function for function in (countdown, gsm8k, qwen3_4b_dapo, qwen3_8b_dapo)
}
