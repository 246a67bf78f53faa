"""Supervised warm-up of the policies: first the skill, then the habit of avoiding the rare strategy.

    python -m aer_train.tasks.warmup --task countdown --size base --out aer_train/tasks/countdown_policy

made the folder in this package. Stage 1 teaches right responses of both tiers and strategies; stage 2 makes a weak solver that uses the
strategy which hard problems need only with probability `rare`. The result is an ordinary Hugging Face folder.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aer_train.tasks import TASKS, task
from aer_train.tasks.prompts import TIERS, Task, make_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

COUNTDOWN = task("countdown")
PAD, EOS = "<pad>", "<eos>"
BATCH = 256
LR_WARMUP = 50

SIZES = {
    "small": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "head_dim": 16},
    "base": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "head_dim": 32},
    "large": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "head_dim": 64},
}
"""Shapes of the models: 0.15M, 0.59M and 22M parameters; large is for a GPU."""

REFERENCE_WIDTH = 128
"""Width for which the learning rates of the warm-up are; that of another falls as the width grows."""

STEPS = {"countdown": (745, 120), "countdown4": (2400, 150), "worked": (1200, 150), "mixed": (2400, 150), "chains": (1000, 150)}
"""Optimizer steps of the two stages."""

GROWING = frozenset({"chains"})
"""Tasks whose skill begins with the shortest answers. The longest ones come in at half of the stage; all at once are not learned."""

SKILL_LR, HABIT_LR = 2e-3, 5e-4

RARE = 0.005
"""Share of the rare strategy that stage 2 teaches."""


def build_tokenizer(characters: str = COUNTDOWN.characters) -> PreTrainedTokenizerFast:
    """One token a character, and padding and end of sequence before them."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate([PAD, EOS, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False)


def build_model(size: str = "base", vocab_size: int = 2 + len(COUNTDOWN.characters)) -> Qwen3ForCausalLM:
    """A Qwen3 with tied embeddings, randomly initialised."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape: dict[str, Any] = SIZES[size]
    config = Qwen3Config(
        **shape,
        vocab_size=vocab_size,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return Qwen3ForCausalLM(config)


def warm_up(
    out: Path,
    name: str = "countdown",
    size: str = "base",
    seed: int = 0,
    steps: tuple[int, int] | None = None,
    rare: float = RARE,
    device: str = "cpu",
) -> None:
    """Train a policy and write it to `out`, a Hugging Face folder (minutes on one core).

    Args:
        out: must not exist yet.
        name: of the task.
        size: a key of SIZES.
        seed: of initialisation and data.
        steps: optimizer steps of the two stages; None is STEPS.
        rare: probability of the rare strategy in the second stage, in [0, 1].
        device: where it is trained.
    """
    if out.exists():
        raise ValueError(f"out must not exist yet, got {out}")
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    chosen = task(name)
    skill_steps, habit_steps = STEPS[name] if steps is None else steps
    torch.manual_seed(seed)
    tokenizer, rng = build_tokenizer(chosen.characters), random.Random(seed)
    model: Any = build_model(size, len(tokenizer))
    model.to(device)
    longest = chosen.max_new_tokens - 1 if name in GROWING else None
    train_stage(model, tokenizer, chosen, rng, "skill", skill_steps, SKILL_LR, chosen.skill_answer, longest)
    train_habit(model, tokenizer, chosen, rng, habit_steps, rare)
    save_policy(model, tokenizer, out)


def save_policy(model: Any, tokenizer: Any, out: Path) -> None:
    """Write a policy as a Hugging Face folder in half precision; `out` is there as a whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".warmup-", dir=out.parent))
    try:
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
        model.cpu().half().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def train_habit(model: Any, tokenizer: Any, task: Task, rng: random.Random, steps: int, rare: float) -> None:
    """Train a weak solver in place: it uses the strategy that hard problems need with probability `rare`."""
    train_stage(model, tokenizer, task, rng, "habit", steps, HABIT_LR, lambda problem, rng: task.habit_answer(problem, rng, rare))


def train_stage(
    model: Any,
    tokenizer: Any,
    task: Task,
    rng: random.Random,
    stage: str,
    steps: int,
    lr: float,
    answer: Callable[[Any, random.Random], str],
    longest: int | None = None,
) -> None:
    """Train a model in place on prompts of both tiers and their answers.

    Args:
        lr: that of a model of REFERENCE_WIDTH or less.
        longest: tokens of the longest answer, if answers are to grow up to it over the first half; None is all from the first step.
    """
    from rich.progress import track

    lr *= min(1.0, REFERENCE_WIDTH / model.config.hidden_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    for step in track(range(steps), description=f"warm-up of {task.name}: {stage}"):
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * max(0, step - LR_WARMUP) / max(1, steps - LR_WARMUP)))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / LR_WARMUP) * cosine
        most = None if longest is None else min(longest, 1 + int(longest * step / (0.5 * steps)))
        problems = _problems(task, rng, most)
        pairs = [(task.render(problem, rng).text, answer(problem, rng)) for problem in problems]
        ids, labels = _encode(tokenizer, pairs)
        loss = model(input_ids=ids.to(model.device), labels=labels.to(model.device)).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def _problems(task: Task, rng: random.Random, most: int | None) -> list[Any]:
    """Draw a batch from both tiers in turn, of problems whose answers have at most `most` tokens."""
    drawn = (task.draw("train", tier, rng) for tier in itertools.cycle(TIERS))
    short = (problem for problem in drawn if most is None or len(task.skill_answer(problem, rng)) <= most)
    return list(itertools.islice(short, BATCH))


def _encode(tokenizer: Any, pairs: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded on the right, and labels of the response tokens alone. One token a character."""
    rows = [[*tokens, tokenizer.eos_token_id] for tokens in tokenizer([prompt + response for prompt, response in pairs])["input_ids"]]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    position, lengths = torch.arange(width), torch.tensor([[len(prompt), len(row)] for (prompt, _), row in zip(pairs, rows, strict=True)])
    outside = (position < lengths[:, :1]) | (position >= lengths[:, 1:])
    return ids, ids.masked_fill(outside, -100)


def report(folder: Path, name: str = "countdown", split: str = "validation", samples: int = 16, device: str = "cpu") -> dict[str, float]:
    """Accuracy and pass@k by tier and the share of responses with the rare strategy, sampled at temperature 1."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.to(device)
    tokenizer, chosen = AutoTokenizer.from_pretrained(folder, padding_side="left"), task(name)
    torch.manual_seed(0)
    found: dict[str, float] = {}
    for tier in TIERS:
        prompts = [p for p in make_prompts(chosen, split) if p.tier == tier for _ in range(samples)]
        inputs = tokenizer([p.text for p in prompts], return_tensors="pt", padding=True, return_token_type_ids=False).to(device)
        out = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=chosen.max_new_tokens)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        scores = torch.tensor([chosen.score(t, p.answer) for t, p in zip(texts, prompts, strict=True)]).view(-1, samples)
        found |= {f"{tier} accuracy": scores.mean().item(), f"{tier} pass@{samples}": scores.amax(1).mean().item()}
        found[f"{tier} share of the rare strategy"] = sum(map(chosen.is_rare, texts)) / len(texts)
    return found


def main() -> None:
    """Make the policy that the command line describes."""
    parser = argparse.ArgumentParser(description=warm_up.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", choices=TASKS, default="countdown")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rare", type=float, default=RARE)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warm_up(arguments.out, arguments.task, arguments.size, arguments.seed, rare=arguments.rare, device=arguments.device)
    for name, share in report(arguments.out, arguments.task, device=arguments.device).items():
        print(f"{name}: {share:.4f}")


if __name__ == "__main__":
    main()
