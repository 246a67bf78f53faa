"""A short supervised warm-up: a pretrained model learns how a solution looks, and hardly how to find it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track

from aer_train.data.encode import encode_prompts
from aer_train.model import Policy
from aer_train.types import Prompt


@dataclass(frozen=True)
class WarmUp:
    """How long and how fast."""

    epochs: int = 2
    lr: float = 3e-5
    batch: int = 16
    """Problems of an update."""

    def __post_init__(self) -> None:
        for name in ("epochs", "lr", "batch"):
            if not getattr(self, name) > 0:
                raise ValueError(f"warmup.{name} must be > 0, got {getattr(self, name)}")


def response_to(prompt: Prompt) -> str:
    """Return the response that is taught: a line for each operation, and the answer behind `####`."""
    return "\n".join([*prompt.columns["lines"], f"#### {prompt.answer}"])


def warm_up(policy: Policy, prompts: Sequence[Prompt], settings: WarmUp, seed: int) -> list[float]:
    """Train a policy in place on the responses to prompts, and return the loss of each update (nats a token).

    Args:
        prompts: rows with `lines`, such as those of `study.real.problems`.
        seed: of the order.
    """
    rows, rng, losses = _encode(policy.tokenizer, prompts), random.Random(seed), list[float]()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0)
    batches = [batch for _ in range(settings.epochs) for batch in _batches(rows, settings.batch, rng)]
    for batch in track(batches, description="warm-up"):
        ids, labels, mask = (part.to(policy.device) for part in _padded(batch))
        with policy.autocast():
            loss = policy.model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _encode(tokenizer: Any, prompts: Sequence[Prompt]) -> list[tuple[list[int], list[int]]]:
    """Tokens of each prompt, and of its response with the end of sequence."""
    responses = tokenizer([response_to(prompt) for prompt in prompts], add_special_tokens=False)["input_ids"]
    return [(asked, [*said, tokenizer.eos_token_id]) for asked, said in zip(encode_prompts(tokenizer, prompts), responses, strict=True)]


def _batches(rows: Sequence[tuple[list[int], list[int]]], size: int, rng: random.Random) -> Iterator[list[tuple[list[int], list[int]]]]:
    order = list(rows)
    rng.shuffle(order)
    return (order[start : start + size] for start in range(0, len(order), size))


def _padded(batch: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids padded on the right, labels of the response tokens alone (-100 elsewhere), and the mask of what is there."""
    width = max(len(asked) + len(said) for asked, said in batch)
    shape = (len(batch), width)
    ids, labels, mask = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100), torch.zeros(shape, dtype=torch.long)
    for row, (asked, said) in enumerate(batch):
        end = len(asked) + len(said)
        ids[row, :end], labels[row, len(asked) : end], mask[row, :end] = torch.tensor(asked + said), torch.tensor(said), 1
    return ids, labels, mask
