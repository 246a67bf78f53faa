"""Supervised warm-up of the demo policy: first the skill, then the habit of avoiding *.

    python -m aer_train.tasks.warmup --out aer_train/tasks/countdown_policy

made the folder in this package. Stage 1 teaches valid solutions of both tiers; stage 2 makes a weak solver that tries + and - first and
writes a * only with probability `rare_star`. The result is an ordinary Hugging Face folder. Measured on it (held-out, 16 samples at T = 1):
easy accuracy 0.751 and pass@16 1.0, hard accuracy 0.0005 and pass@16 0.008, a * in 0.3 % of the responses to hard prompts.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aer_train.tasks.countdown import Problem, expressions, make_prompts, problems, render, score, solutions, value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

CHARACTERS = "0123456789+-*=?"
PAD, EOS = "<pad>", "<eos>"
BATCH = 256
LR_WARMUP = 50


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; 17 tokens with padding and end of sequence."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate([PAD, EOS, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False)


def build_model() -> Qwen3ForCausalLM:
    """A Qwen3 of 0.59M parameters with tied embeddings, randomly initialised."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(CHARACTERS) + 2,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return Qwen3ForCausalLM(config)


def skill_answer(problem: Problem, rng: random.Random) -> str:
    """A valid solution; one without * where there is one."""
    found = solutions(problem)
    additive = [e for e in found if "*" not in e]
    return rng.choice(additive or list(found))


def habit_answer(problem: Problem, rng: random.Random, rare_star: float) -> str:
    """The additive attempt nearest to the target, right or wrong; rarely a solution with *."""
    starred = [e for e in solutions(problem) if "*" in e]
    if starred and rng.random() < rare_star:
        return rng.choice(starred)
    additive = [e for e in expressions(problem[0]) if "*" not in e]
    best = min(abs(value(e) - problem[1]) for e in additive)
    return rng.choice([e for e in additive if abs(value(e) - problem[1]) == best])


def warm_up(out: Path, seed: int = 0, skill_steps: int = 745, habit_steps: int = 120, rare_star: float = 0.007) -> None:
    """Train the demo policy and write it to `out`, a Hugging Face folder (about 4 minutes on one core).

    Args:
        out: must not exist yet.
        seed: of initialisation and data.
        skill_steps, habit_steps: optimizer steps of the two stages.
        rare_star: probability of a solution with * in the second stage, in [0, 1].
    """
    if out.exists():
        raise ValueError(f"out must not exist yet, got {out}")
    torch.manual_seed(seed)
    model, tokenizer, rng = build_model(), build_tokenizer(), random.Random(seed)
    _train(model, tokenizer, rng, "skill", skill_steps, 2e-3, skill_answer)
    _train(model, tokenizer, rng, "habit", habit_steps, 5e-4, lambda p, r: habit_answer(p, r, rare_star))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".warmup-", dir=out.parent))
    try:
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
        model.half().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _train(model, tokenizer, rng: random.Random, name: str, steps: int, lr: float, answer) -> None:  # type: ignore[no-untyped-def]
    from rich.progress import track

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    by_tier = problems("train")
    for step in track(range(steps), description=f"warm-up: {name}"):
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * max(0, step - LR_WARMUP) / max(1, steps - LR_WARMUP)))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / LR_WARMUP) * cosine
        chosen = [rng.choice(by_tier["easy" if i % 2 else "hard"]) for i in range(BATCH)]
        texts = [render(p, rng).text + answer(p, rng) for p in chosen]
        ids = torch.tensor([[*tokens, tokenizer.eos_token_id] for tokens in tokenizer(texts)["input_ids"]])
        labels = ids.clone()
        labels[:, :7] = -100  # the loss is on the response
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def report(folder: Path, samples: int = 16) -> dict[str, float]:
    """Held-out accuracy by tier and the share of responses with a *, sampled at temperature 1."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    found: dict[str, float] = {}
    for name in ("easy", "hard"):
        prompts = [p for p in make_prompts("test") if p.tier == name for _ in range(samples)]
        ids = tokenizer([p.text for p in prompts], return_tensors="pt")["input_ids"]
        out = model.generate(ids, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=6)
        texts = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        scores = torch.tensor([score(t, p.answer) for t, p in zip(texts, prompts, strict=True)]).view(-1, samples)
        found |= {f"{name} accuracy": scores.mean().item(), f"{name} pass@{samples}": scores.amax(1).mean().item()}
        found[f"{name} share with *"] = sum("*" in t for t in texts) / len(texts)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=warm_up.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rare-star", type=float, default=0.007)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warm_up(arguments.out, arguments.seed, rare_star=arguments.rare_star)
    for name, share in report(arguments.out).items():
        print(f"{name}: {share:.4f}")


if __name__ == "__main__":
    main()
