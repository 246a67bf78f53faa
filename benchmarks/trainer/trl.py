"""`python -m benchmarks.trainer.trl JOB`: TRL's GRPOTrainer with the same model, prompts, reward, batch and optimizer settings.

Its own defaults stay where they are about how to compute (fused AdamW, chunked lm_head, generation by transformers); those that change
what is computed (precision, gradient checkpointing, clipping bounds, learning rate schedule) are set to what ours does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from transformers.models.qwen3 import Qwen3ForCausalLM  # noqa: F401  before memory is first looked at
from trl import GRPOConfig, GRPOTrainer

from benchmarks.trainer.cases import GROUP_SIZE, Case, Job
from benchmarks.trainer.process import Watch


def main() -> None:
    job = Job.read(Path(sys.argv[1]))
    torch.set_num_threads(job.threads)
    watch = Watch(job)
    data = load_dataset("json", data_files=str(job.data), split="train", cache_dir=str(job.work / "cache"))
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32),
        reward_funcs=_reward(job),
        args=settings(job),
        train_dataset=data.rename_column("problem", "prompt"),
        processing_class=AutoTokenizer.from_pretrained(job.model),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Steps(watch, job.case, _timed(trainer)))
    trainer.train()
    watch.write(trl.__version__)


def settings(job: Job) -> GRPOConfig:
    """Return the job as a configuration of TRL."""
    case, rows = job.case, job.case.prompts * GROUP_SIZE
    bang_bang = {"use_adaptive_entropy": True, "entropy_target": case.target, "entropy_coef_delta": 0.005, "entropy_coef_max": 1.0}
    return GRPOConfig(
        output_dir=str(job.work),
        seed=job.seed,
        max_steps=case.steps * case.updates_per_step,
        per_device_train_batch_size=rows // case.updates_per_step,
        steps_per_generation=case.updates_per_step,
        num_generations=GROUP_SIZE,
        max_completion_length=case.max_new_tokens,
        temperature=1.0,
        learning_rate=case.lr,
        adam_beta1=0.9,
        adam_beta2=0.99,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        loss_type="dapo",
        scale_rewards="group",
        epsilon=0.2,
        beta=0.0,
        entropy_coef=case.coef,
        **(bang_bang if case.entropy == "bang_bang" else {}),
        gradient_checkpointing=False,
        bf16=job.device == "cuda",
        use_cpu=job.device == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


class Steps(TrainerCallback):
    """Tells the watch what each step logged. A step ends with the last of the optimizer updates on one batch of rollouts, as in ours."""

    def __init__(self, watch: Watch, case: Case, parts: dict[str, float]) -> None:
        self.watch, self.case, self.parts = watch, case, parts
        self.logs: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs is None or "entropy" not in logs:
            return
        self.logs = logs | self.logs  # rewards and lengths come with the first update; of what all of them log, the first counts
        if state.global_step % self.case.updates_per_step == 0:
            found, self.logs = self.logs, {}
            tokens = found["completions/mean_length"] * self.case.prompts * GROUP_SIZE
            self.watch.step(tokens=tokens, reward=found["reward"], entropy=found["entropy"], parts=dict(self.parts))
            self.parts.update(dict.fromkeys(self.parts, 0.0))


def _reward(job: Job) -> Callable[..., list[float]]:
    if job.case.dead is not None:
        from benchmarks.trainer.rewards import unless_dead as score
    elif job.case.vocab_size is None:
        from aer_train.tasks import task

        score = task("countdown").score
    else:
        from benchmarks.trainer.rewards import even_share as score

    def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [score(*pair) for pair in zip(completions, answer, strict=True)]

    return reward


def _timed(trainer: GRPOTrainer) -> dict[str, float]:
    """Let the trainer's generation and rewards count their seconds; returns the counts, which its callback sets back to 0."""
    seconds = {"rollout": 0.0, "verify": 0.0}

    def count(part: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return real(*args, **kwargs)
            finally:
                seconds[part] += time.perf_counter() - begin

        return counted

    trainer._generate = count("rollout", trainer._generate)
    trainer._calculate_rewards = count("verify", trainer._calculate_rewards)
    return seconds


if __name__ == "__main__":
    main()
