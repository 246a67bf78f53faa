"""A policy with words that are never right: the same task, with as many tokens beside those that it needs as one likes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aer_train.tasks import task, warmup

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

FIRST, MOST = 0x4E00, 20_000
"""The words are characters of one block of Unicode: each is one token, and in no answer."""

DEVIATION = 0.3
"""Deviation of the new embeddings as a share of that of the old ones."""

HABIT_STEPS = 200
"""Steps of the habit's training that are repeated, so that the policy knows where the words do not belong."""


def add_words(policy: Path, out: Path, name: str, words: int, seed: int, rare: float, steps: int = HABIT_STEPS) -> None:
    """Write a policy that can do what another one does, and has more words, to `out`.

    Args:
        policy: folder of the other one, by `warmup.warm_up`.
        name: of the task.
        words: how many, in [1, MOST].
        seed: of the embeddings and of the training after them.
        rare: probability of the rare strategy in that training.
    Raises:
        ValueError - too many words.
    """
    from transformers import AutoModelForCausalLM

    if not 1 <= words <= MOST:
        raise ValueError(f"words must be in [1, {MOST}], got {words}")
    chosen = task(name)
    tokenizer = warmup.build_tokenizer(chosen.characters + "".join(map(chr, range(FIRST, FIRST + words))))
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    model = widened(model, len(tokenizer))
    warmup.train_habit(model, tokenizer, chosen, random.Random(seed), steps, rare)
    warmup.save_policy(model, tokenizer, out)


def widened(model: Qwen3ForCausalLM, vocab_size: int) -> Qwen3ForCausalLM:
    """Return a model with tied embeddings of more tokens; those that it has keep theirs."""
    old = model.model.embed_tokens.weight.detach()
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    new = model.model.embed_tokens.weight
    with torch.no_grad():
        new[len(old) :] = DEVIATION * old.std() * torch.randn(vocab_size - len(old), old.shape[1])
    return model
