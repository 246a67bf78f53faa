"""TRL's GRPOTrainer, plain and with AER, on the embedded Countdown task: nothing to download, two minutes a run on one core.

python examples/trl_countdown.py --seeds 0 1

Prints a table: the share of held-out prompts that are solved at the first try (pass@1), and by any of 16 samples (pass@16).
"""

import argparse
import os
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from transformers.utils import logging
from trl import GRPOConfig

from aer_kernels import EXPLORE_THEN_SETTLE, EntropyControlConfig
from aer_kernels.integrations.trl import AERGRPOTrainer
from aer_train.evaluation.estimates import pass_at_k
from aer_train.model import COUNTDOWN_POLICY
from aer_train.tasks import task
from aer_train.tasks.prompts import TIERS, make_prompts

COUNTDOWN = task("countdown")  # easy: 358=16? -> 8+5+3.  hard, needs a *, which the policy hardly ever writes: 358=43? -> 5*8+3
METHODS = {"plain GRPO": EntropyControlConfig(kind="off"), "AER": EXPLORE_THEN_SETTLE}  # which suits small policies, not pretrained models
SAMPLES = 16


def correct(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """The reward: 1.0 for a right response. It is the accuracy, too."""
    return [COUNTDOWN.score(text, gold) for text, gold in zip(completions, answer, strict=True)]


def train(entropy: EntropyControlConfig, seed: int, steps: int, folder: str) -> AERGRPOTrainer:
    """Train for `steps` generations of 32 prompts x 8 responses, with two optimizer steps on each."""
    args = GRPOConfig(
        output_dir=folder,
        seed=seed,
        max_steps=2 * steps,
        per_device_train_batch_size=128,
        steps_per_generation=2,
        num_generations=8,
        max_completion_length=COUNTDOWN.max_new_tokens,
        learning_rate=2e-4,
        adam_beta2=0.99,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=2 * steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = AERGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(COUNTDOWN_POLICY, dtype=torch.float32),
        reward_funcs=correct,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": p.text, "answer": p.answer} for p in make_prompts(COUNTDOWN, "train", seed=seed)]),
        processing_class=AutoTokenizer.from_pretrained(COUNTDOWN_POLICY),
        entropy=entropy,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


@torch.no_grad()
def held_out(trainer: AERGRPOTrainer, count: int | None = None) -> list[float]:
    """pass@1 and pass@16 of each tier, on the test prompts."""
    model, tokenizer, found = trainer.model.eval(), trainer.processing_class, []
    tokenizer.padding_side = "left"
    torch.manual_seed(0)
    prompts = make_prompts(COUNTDOWN, "test", count)
    for tier in TIERS:
        part = [prompt for prompt in prompts if prompt.tier == tier]
        ids = tokenizer([prompt.text for prompt in part], return_tensors="pt", padding=True)
        options = {"do_sample": True, "top_k": 0, "max_new_tokens": COUNTDOWN.max_new_tokens, "num_return_sequences": SAMPLES}
        tokens = model.generate(ids.input_ids, attention_mask=ids.attention_mask, **options)[:, ids.input_ids.shape[1] :]
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        tallies = [sum(COUNTDOWN.score(text, p.answer) for text in texts[SAMPLES * i : SAMPLES * (i + 1)]) for i, p in enumerate(part)]
        found += pass_at_k(SAMPLES, [int(tally) for tally in tallies])[:, [0, -1]].mean(0).tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=140, help="generations of a run")
    parser.add_argument("--prompts", type=int, help="held-out prompts (default: all 224)")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # for a model as small as this, a second thread costs more than it gives
    print("| method | seed | easy pass@1 | easy pass@16 | hard pass@1 | hard pass@16 | seconds |\n|---|---|---|---|---|---|---|")
    for seed in args.seeds:
        for name, entropy in METHODS.items():
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                numbers = held_out(train(entropy, seed, args.steps, folder), args.prompts)
            cells = [name, str(seed), *(f"{number:.3f}" for number in numbers), f"{time.monotonic() - started:.0f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
