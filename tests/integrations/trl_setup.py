"""TRL trainers of the embedded Countdown policy, small and on a CPU."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import utils as trl_utils

from aer_kernels import EntropyControlConfig
from aer_kernels.integrations import trl_loss
from aer_kernels.integrations.trl import AERGRPOTrainer
from aer_kernels.methods import Stateless, TokenBatch, TokenTerms, method_class
from aer_train.model import COUNTDOWN_POLICY
from aer_train.tasks import task
from aer_train.tasks.prompts import make_prompts

COUNTDOWN = task("countdown")
GROUP, ROWS = 4, 16


FIXED = EntropyControlConfig(kind="fixed", coef=0.05, difficulty="uniform")
ACTIVE = EntropyControlConfig(target=9.0, quantity="response", surplus=1.0)
"""Far below its target: the coefficient moves at once. Needs the log-probs of the samples."""
TARGETS = method_class("token_targets").Config(tau=1.5, rho=1.0)
"""Compares with the first policy."""


@pytest.fixture(autouse=True)
def nothing_is_left_patched():
    """In every module that imports it."""
    torch.set_num_threads(1)
    before = trl_utils._ChunkedLogProbFunction
    yield
    assert trl_utils._ChunkedLogProbFunction is before


@dataclass(frozen=True)
class CustomConfig:
    kind: str = "tests.integrations.trl_setup.Custom"
    weight: float | None = None
    shift: float | None = None
    entropy: float | None = None
    divergence: float | None = None
    clip: float | None = None
    needs_entropy: bool = False
    compares: bool = False


class Custom(Stateless):
    """The same terms for every token."""

    Config = CustomConfig

    def __init__(self, config: CustomConfig) -> None:
        self.config, self.needs_entropy, self.seen = config, config.needs_entropy, list[Any]()
        self.also_needs = frozenset({"reference_entropy"} if config.compares else ())

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        if len(tokens.logprobs):  # not when it is asked what it moves
            self.seen.append(tokens)
        values = {"weight": self.config.weight, "shift": self.config.shift, "entropy_coef": self.config.entropy}
        values["divergence_coef"] = self.config.divergence
        given = {name: torch.full_like(tokens.advantages, value) for name, value in values.items() if value is not None}
        return TokenTerms(**given, clip_low=self.config.clip, clip_high=self.config.clip)

    def update(self, measured: Any) -> None:
        self.seen.append(measured)


def correct(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [COUNTDOWN.score(text, gold) for text, gold in zip(completions, answer, strict=True)]


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(COUNTDOWN_POLICY, dtype=torch.float32)


def make(
    folder: Path, cls: type = AERGRPOTrainer, steps: int = 3, reward: Any = correct, start: Any = None, options: Any = None, **changes: Any
) -> GRPOTrainer:
    """A trainer; `changes` are of GRPOConfig, `options` of the class."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": 0,
        "max_steps": steps,
        "per_device_train_batch_size": ROWS,
        "num_generations": GROUP,
        "max_completion_length": 6,
        "learning_rate": 5e-4,
        "adam_beta2": 0.99,
        "lr_scheduler_type": "constant",
        "loss_type": "dapo",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    rows = [{"prompt": prompt.text, "answer": prompt.answer} for prompt in make_prompts(COUNTDOWN, "train", 200)]
    trainer = cls(
        model=model() if start is None else start,
        reward_funcs=reward,
        args=GRPOConfig(**(settings | changes)),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:4]),
        processing_class=AutoTokenizer.from_pretrained(COUNTDOWN_POLICY),
        **(options or {}),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def trained(folder: Path, **changes: Any) -> GRPOTrainer:
    trainer = make(folder, **changes)
    trainer.train()
    return trainer


def weights(trainer: GRPOTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def logged(trainer: GRPOTrainer, name: str) -> list[float]:
    """What was logged under a name, step by step."""
    return [row[name] for row in trainer.state.log_history if name in row]


def fixed_rollouts(with_logprobs: bool = False, env_mask: Callable[[list[int]], list[int]] | None = None) -> Any:
    """A rollout function whose responses are a function of the prompt and of their place in the group, of 1 to 6 tokens."""

    def rollout(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        tokenizer, first = trainer.processing_class, trainer.accelerator.process_index * len(prompts)
        responses, logprobs = [], []
        for place, prompt in enumerate(prompts):
            draw = random.Random(f"{prompt} {(first + place) % GROUP}")
            text = "".join(draw.choice("0123456789+-*") for _ in range(draw.randrange(1, 7)))
            responses.append(tokenizer(text).input_ids[:6])
            logprobs.append([-draw.random() for _ in responses[-1]])
        out = {
            "prompt_ids": [tokenizer(prompt).input_ids for prompt in prompts],
            "completion_ids": responses,
            "logprobs": logprobs if with_logprobs else None,
        }
        return out | ({} if env_mask is None else {"env_mask": [env_mask(response) for response in responses]})

    return rollout


def share_of_digits(completions: list[str], **_: Any) -> list[float]:
    return [sum(letter.isdigit() for letter in text) / max(1, len(text)) for text in completions]


def pretend_vllm(trainer: GRPOTrainer) -> GRPOTrainer:
    """All of what TRL does with vLLM but vLLM: the rollouts and their log-probs come from elsewhere."""
    trainer.use_vllm, trainer._last_loaded_step = True, -1
    trainer.vllm_generation = SimpleNamespace(sync_weights=lambda: None)
    return trainer


def lora(**options: Any) -> Any:
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    return peft.LoraConfig(**({"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options))


def one_loss(trainer: GRPOTrainer, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
    """The gradients of a trainer's first loss at its log-probs and entropies, its mask, and its inputs."""
    found: list[Any] = []
    real = GRPOTrainer._compute_loss

    def compute(self, model, inputs):
        passes = []
        make_pass = self._get_per_token_logps_and_entropies

        def kept(*args, **kwargs):
            passes.append(make_pass(*args, **kwargs))
            return passes[-1]

        self._get_per_token_logps_and_entropies = kept
        try:
            loss = real(self, model, inputs)
        finally:
            del self._get_per_token_logps_and_entropies
        found.append((passes[0], inputs))
        return loss

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", compute)
    whole = type(trainer).compute_loss

    def differentiated(self, model, inputs, **kwargs):
        loss = whole(self, model, inputs, **kwargs)
        (logprobs, entropy, _), _ = found[0]
        found.append(torch.autograd.grad(loss, [logprobs, entropy], retain_graph=True, allow_unused=True))
        return loss

    monkeypatch.setattr(type(trainer), "compute_loss", differentiated)
    trainer.train()
    monkeypatch.undo()
    (_, inputs), (by_logprob, by_entropy) = found[0], found[1]
    return by_logprob, by_entropy, trl_loss.loss_mask(inputs), inputs
