"""The records that flow through one training step: prompts -> samples + verdicts = groups -> batch -> micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

Row = dict[str, Any]
"""A flat record: name -> value."""

Outcome = Literal["correct", "wrong", "no_answer", "gold_unparseable", "timeout", "crash"]

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


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
    others: tuple[str, ...] = ()
    """Further gold answers; a response is right by any of them."""
    chat: bool = False
    """Whether a chat template made the text, which then has every special token that it should have."""
    columns: Row = field(default_factory=dict, compare=False)
    """The whole row that it comes from, for reward functions that ask for more than the answer."""
    messages: Sequence[dict[str, Any]] | None = field(default=None, compare=False)
    """What the chat template rendered; None without one."""

    @property
    def golds(self) -> tuple[str, ...]:
        """All gold answers."""
        return (self.answer, *self.others)


@dataclass(frozen=True)
class Sampling:
    """What responses are drawn from."""

    temperature: float = 1.0
    """>= 0; 0 is greedy."""
    top_p: float = 1.0
    """In (0, 1]."""


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
    """Decoded response without its end and padding; other special tokens, such as those around thinking, are in it."""
    finished: bool
    """True when the response ended by itself, False when it was cut at max_new_tokens."""
    version: int = 0
    """Version of the weights that sampled it: training steps made before."""

    @property
    def surprisal(self) -> float:
        """-log-probability of the whole response, nats; its mean over responses is their entropy."""
        return -sum(self.logprobs)


class Question(NamedTuple):
    """What a reward may see of one response."""

    response: str
    answer: str
    """Gold answer."""
    prompt: str = ""
    """What the model was given."""
    columns: Mapping[str, Any] = MappingProxyType({})
    """The row of the dataset."""
    messages: Sequence[dict[str, Any]] | None = None
    """The prompt as a conversation, where a chat template made it."""
    others: tuple[str, ...] = ()
    """Further gold answers, for reward.kind."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found about one response."""

    outcome: Outcome
    """By reward.kind, whatever other functions found."""
    reward: float
    """What advantages come from: 1.0 for correct, else 0.0, or what reward.kind gave in [0, 1]; with reward.functions the weighted sum."""
    extracted: str | None
    """The answer that was graded."""
    seconds: float
    """Time that grading it took, without waiting for a free process."""
    detail: str = ""
    """What went wrong, for a timeout or a crash."""
    scores: Mapping[str, float | None] | None = None
    """With reward.functions: what each one gave, by its name; None where it has none to give, or failed."""
    failed: tuple[str, ...] = ()
    """With reward.functions: names of those that failed, reward.kind included."""
    kind_reward: float | None = None
    """What reward.kind gave, where that is not the reward."""

    @property
    def accuracy(self) -> float:
        """What reward.kind gave, in [0, 1]; 1 is correct."""
        return self.reward if self.kind_reward is None else self.kind_reward

    @property
    def graded(self) -> bool:
        """Whether reward.kind gave its verdict."""
        return self.outcome not in ("timeout", "crash")

    @property
    def judged(self) -> bool:
        """Whether every function gave its verdict."""
        return self.graded and not self.failed

    @property
    def failure(self) -> str:
        """What went wrong, for a response that was not judged; with reward.functions `detail` has said of which."""
        return self.detail if self.failed else f"{self.outcome}: {self.detail}"


@dataclass(frozen=True)
class Group:
    """A prompt with its responses and what the verifier found about each."""

    prompt: Prompt
    samples: list[Sample]
    verdicts: list[Verdict]

    @property
    def rewards(self) -> list[float]:
        """What was given for each response, before any shaping."""
        return [verdict.reward for verdict in self.verdicts]

    @property
    def accuracies(self) -> list[float]:
        """What reward.kind gave for each response, in [0, 1]."""
        return [verdict.accuracy for verdict in self.verdicts]


@dataclass(frozen=True)
class Batch:
    """The groups that a step trains on, and what was decided about each of their samples, group after group."""

    groups: list[Group]
    rewards: list[float]
    """After shaping: what the advantages come from."""
    advantages: list[float]
    trained: list[bool]
    """False keeps all tokens of a sample out of the loss, its denominators and the entropy that the method sees."""
    accuracy: list[float]
    """Of each group: the mean of what reward.kind gave."""

    @cached_property
    def samples(self) -> list[Sample]:
        """One for each of the decisions."""
        return [sample for group in self.groups for sample in group.samples]

    def shares(self, count: int) -> list[list[int]]:
        """Return the numbers of the trained samples of `count` equal shares of the groups."""
        starts = list(accumulate((len(group.samples) for group in self.groups), initial=0))
        size = len(self.groups) // count
        bounds = [(starts[share * size], starts[(share + 1) * size]) for share in range(count)]
        return [[row for row in range(start, stop) if self.trained[row]] for start, stop in bounds]
