"""The records that flow through one training step: prompts -> samples -> (verdicts) -> micro-batches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """One problem, rendered and ready to be tokenised."""

    id: str
    text: str
    """What the model is given: the chat template or plain template is already applied."""
    answer: str
    """Gold answer, as the verifier reads it."""
    tier: str = "all"
    """Difficulty tier by which evaluation is broken down."""


@dataclass(frozen=True)
class Sample:
    """One response to one prompt."""

    prompt: int
    """Index of the prompt in the step's list."""
    index: int
    """Index of the sample in its group, 0 .. group_size - 1."""
    prompt_tokens: list[int]
    tokens: list[int]
    """Response tokens, the end-of-sequence token included when it was produced."""
    logprobs: list[float]
    """Log-probability (nats) of each response token under the tempered distribution that was sampled."""
    text: str
    """Decoded response without special tokens."""
    finished: bool
    """True when the response ended by itself, False when it was cut at max_new_tokens."""
