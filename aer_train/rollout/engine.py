"""Rollouts by an engine that holds weights of its own: what it is asked for, what its answers mean, and when its weights are replaced."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from aer_train.config.tree import RolloutConfig
from aer_train.data.encode import encode_prompts
from aer_train.model import Policy, cut, response_text, with_stops
from aer_train.rollout.probe import Probe
from aer_train.rollout.protocol import GroupSize, ordered, sizes_of
from aer_train.seeds import sample_seed
from aer_train.types import Prompt, Sample, Sampling

SCORING: dict[str, Any] = {"temperature": 1.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
"""vLLM's sampling parameters for the log-probs of a text (of the untempered distribution); the one new token is not read."""


@dataclass(frozen=True)
class Request:
    """One response to be drawn."""

    prompt: int
    """Requests with the same number have the same prompt: they are best answered by the same copy of the model."""
    tokens: list[int]
    """Of the prompt."""
    sampling: dict[str, Any]
    """vLLM's sampling parameters."""


class Completion(NamedTuple):
    """An answered request."""

    request: int
    """Its place in the list of requests."""
    tokens: list[int]
    logprobs: list[float]
    """Of the tempered distribution, nats."""


class Engine(Protocol):
    """vLLM, wherever it runs. With several training processes all of them call everything together, but each with requests of its own."""

    max_model_len: int

    def start(self) -> None:
        """Make it ready for everything below; its weights are not the policy's yet."""

    def complete(self, requests: Sequence[Request]) -> Iterator[list[Completion]]:
        """Answer all requests, and yield the answers as they come."""

    def score(self, sequences: list[list[int]]) -> list[list[list[float]]]:
        """Return the log-probs (nats, temperature 1) of every token but the first of each sequence, by each copy of the model in reach."""

    def release(self) -> None:
        """Give the GPU's memory to training until `update`."""

    def update(self, version: int) -> None:
        """Replace the weights by the policy's, and forget all that was computed with the old ones."""

    def close(self) -> None:
        """Stop; more calls do nothing."""


class EngineRollout:
    """Samples with an engine, which the first `sync` starts. See `protocol.Rollout`."""

    def __init__(self, policy: Policy, config: RolloutConfig, engine: Engine, probe: Probe, message: Callable[[str], None] = print) -> None:
        """message: is told when the engine is started, and how well its first weights are those of the policy."""
        self.policy = with_stops(policy, config.stop)
        self.config = config
        self.engine = engine
        self.probe = probe
        self.message = message
        self.version: int | None = None
        """Training steps behind the engine's weights; None before it is started."""

    def generate(
        self, prompts: list[Prompt], group_size: GroupSize, seed: tuple[int | str, ...], sampling: Sampling | None = None, first: int = 0
    ) -> list[Sample]:
        """Return the samples of `stream`, ordered by prompt, then index."""
        return ordered(self.stream(prompts, group_size, seed, sampling, first))

    def stream(
        self, prompts: list[Prompt], group_size: GroupSize, seed: tuple[int | str, ...], sampling: Sampling | None = None, first: int = 0
    ) -> Iterator[list[Sample]]:
        """Yield them as they end. A request has a seed of its own; how its log-probs are rounded may depend on what else is computed."""
        assert self.version is not None, "sync comes before sampling"
        sampling = Sampling(self.config.temperature, self.config.top_p) if sampling is None else sampling
        encoded = dict(enumerate(encode_prompts(self.policy.tokenizer, prompts), first))
        self._check_lengths(encoded)
        sizes = sizes_of(group_size, len(prompts))
        places = [(prompt, index) for prompt, size in zip(encoded, sizes, strict=True) for index in range(size)]
        requests = [
            Request(place[0], encoded[place[0]], sampling_parameters(self.policy, self.config, sampling, sample_seed(*seed, *place)))
            for place in places
        ]
        for part in self.engine.complete(requests):
            yield [self._sample(places[answer.request], encoded, answer) for answer in part]

    def release(self) -> None:
        """The engine sleeps where it shares the GPU."""
        self.engine.release()

    def sync(self, version: int) -> dict[str, float | None]:
        """Send the policy's weights, and prove that they have arrived."""
        times = [time.perf_counter()]
        if self.version is None:
            self.message("starting vLLM")
            self.engine.start()
            times.append(time.perf_counter())
        self.engine.update(version)
        found = {"rollout/version": version, **self.probe.check(self.engine.score, version)}
        if self.version is None:
            start, update = (after - before for before, after in pairwise([*times, time.perf_counter()]))
            self.message(
                f"vLLM is ready after {start:.0f} s, its weights replaced and probed in {update:.1f} s: mean difference of its log-probs "
                f"{found['rollout/probe_mean']:.1g} nats, tolerance {self.probe.tolerance:g}"
            )
        self.version = version
        return found

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()

    def _check_lengths(self, encoded: dict[int, list[int]]) -> None:
        longest, limit = max(map(len, encoded.values()), default=0), self.config.max_new_tokens
        if longest + limit > self.engine.max_model_len:
            raise ValueError(
                f"vllm.max_model_len must hold a prompt of {longest} tokens and a response of rollout.max_new_tokens {limit}, "
                f"got {self.engine.max_model_len}: raise it, or lower data.max_prompt_tokens"
            )

    def _sample(self, place: tuple[int, int], encoded: dict[int, list[int]], answer: Completion) -> Sample:
        if not all(map(math.isfinite, answer.logprobs)):
            raise FloatingPointError("log-probs must be finite, got NaN or infinity from vLLM: the policy has diverged, lower optim.lr")
        text = response_text(self.policy, answer.tokens)
        finished, version = answer.tokens[-1] in self.policy.eos_ids, self.version or 0
        sample = Sample(*place, encoded[place[0]], answer.tokens, answer.logprobs, text, finished=finished, version=version)
        return cut(self.policy, sample)  # an engine knows tokens alone, and has gone on behind a text that ends it


def sampling_parameters(policy: Policy, config: RolloutConfig, sampling: Sampling, seed: int) -> dict[str, Any]:
    """Return vLLM's sampling parameters for one response: the distribution that is sampled, and nothing else that bends it.

    Args:
        sampling: what is drawn from; greedy log-probs are those at temperature 1.
        seed: 64 bits, of which vLLM takes 63.
    """
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p if sampling.temperature else 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "seed": seed >> 1,
        "max_tokens": config.max_new_tokens,
        "stop_token_ids": sorted(policy.eos_ids),
        "ignore_eos": True,  # of vLLM's own idea of it: the ends are those above, and belong to the response
        "logprobs": 0,
        "detokenize": False,
    }
