"""The records that flow through one training step: prompts -> samples + verdicts = groups -> batch -> micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from aer_train.verify import Verdict


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
    """Index of the prompt in the list that was sampled."""
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
    version: int = 0
    """Version of the weights that sampled it: training steps made before."""

    @property
    def surprisal(self) -> float:
        """-log-probability of the whole response, nats; its mean over responses is their entropy."""
        return -sum(self.logprobs)


@dataclass(frozen=True)
class Group:
    """A prompt with its responses and what the verifier found about each."""

    prompt: Prompt
    samples: list[Sample]
    verdicts: list[Verdict]

    @property
    def rewards(self) -> list[float]:
        """The verifier's rewards, before any shaping."""
        return [verdict.reward for verdict in self.verdicts]


@dataclass(frozen=True)
class Batch:
    """The groups that a step trains on, and what was decided about each of their samples, group after group."""

    groups: list[Group]
    rewards: list[float]
    """After shaping: what the advantages come from."""
    advantages: list[float]
    entropy_coef: list[float]
    """Of the sample's prompt: alpha times entropy_weight."""
    trained: list[bool]
    """False keeps all tokens of a sample out of the loss, its denominators and the entropy that the controller sees."""
    entropy_weight: list[float]
    """What alpha is multiplied by (`AdaptiveEntropyController.weights`)."""
    held: list[float]
    """How much its entropy counts (`AdaptiveEntropyController.held`)."""

    @cached_property
    def samples(self) -> list[Sample]:
        """One for each of the decisions."""
        return [sample for group in self.groups for sample in group.samples]
