"""Rollouts with transformers' generate, whose sampling is replaced: the uniform number behind each token is a function of its place.

The k-th token of sample j of prompt p at step s is the inverse CDF of the tempered distribution at u(run seed, s, p, j, k).
Batches, padding and whatever else runs in the process cannot change it (beyond the rounding of the logits).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from aer_train.config import RolloutConfig
from aer_train.data import encode_prompt
from aer_train.model import Policy
from aer_train.seeds import generator
from aer_train.types import Prompt, Sample


class HFRollout:
    """Samples responses with the policy itself, in its present state."""

    def __init__(self, policy: Policy, config: RolloutConfig) -> None:
        self.policy = policy
        self.config = config
        self.version = 0
        """Optimizer steps behind the weights that sample."""

    def generate(
        self, prompts: list[Prompt], group_size: int, seed: tuple[int | str, ...], temperature: float | None = None, first: int = 0
    ) -> list[Sample]:
        """Return the samples of `stream`, ordered by prompt, then index."""
        samples = [sample for part in self.stream(prompts, group_size, seed, temperature, first) for sample in part]
        return sorted(samples, key=lambda sample: (sample.prompt, sample.index))

    def stream(
        self, prompts: list[Prompt], group_size: int, seed: tuple[int | str, ...], temperature: float | None = None, first: int = 0
    ) -> Iterator[list[Sample]]:
        """Yield group_size samples of each prompt, chunk by chunk, in any order.

        Args:
            prompts: what to answer.
            group_size: responses per prompt, >= 1.
            seed: names the draw, for example (run seed, "train", step); the same names give the same samples.
            temperature: >= 0, 0 is greedy; None is `config.temperature`.
            first: number of the first prompt, when these are a share of a longer list: `Sample.prompt` and the draws count from it.
        """
        temperature = self.config.temperature if temperature is None else temperature
        encoded = {first + p: encode_prompt(self.policy.tokenizer, prompt.text) for p, prompt in enumerate(prompts)}
        places = [(p, index) for p in encoded for index in range(group_size)]
        places.sort(key=lambda place: len(encoded[place[0]]))  # stable: less padding in a chunk
        with self.policy.gathered():
            for start in range(0, len(places), self.config.batch_size):
                self.policy.model.eval()
                yield self._chunk(encoded, places[start : start + self.config.batch_size], seed, temperature)

    def sync(self, version: int) -> dict[str, float]:
        """Take over the weights of `version`: nothing to do, the policy samples by itself. Returns metrics."""
        self.version = version
        return {}

    def close(self) -> None:
        """Nothing to close."""

    @torch.no_grad()
    def _chunk(
        self, encoded: dict[int, list[int]], places: list[tuple[int, int]], seed: tuple[int | str, ...], temperature: float
    ) -> list[Sample]:
        policy, limit = self.policy, self.config.max_new_tokens
        draws = np.stack([generator(*seed, prompt, index).random(limit) for prompt, index in places])
        sampler = InverseCDFSampler(torch.from_numpy(draws).to(policy.device), temperature)
        width = max(len(encoded[prompt]) for prompt, _ in places)
        padded = [[policy.tokenizer.pad_token_id] * (width - len(encoded[p])) + encoded[p] for p, _ in places]
        mask = [[0] * (width - len(encoded[p])) + [1] * len(encoded[p]) for p, _ in places]
        with policy.autocast():
            output = policy.model.generate(
                input_ids=torch.tensor(padded, device=policy.device),
                attention_mask=torch.tensor(mask, device=policy.device),
                do_sample=False,
                max_new_tokens=limit,
                logits_processor=[sampler],
                synced_gpus=False,
            )
        found = torch.stack(sampler.logprobs, 1)
        if not found.isfinite().all():
            raise FloatingPointError("logits must be finite, got NaN or infinity while sampling: the policy has diverged, lower optim.lr")
        tokens, logprobs = output[:, width:].tolist(), found.tolist()
        return [self._sample(encoded, *row) for row in zip(places, tokens, logprobs, strict=True)]

    def _sample(self, encoded: dict[int, list[int]], place: tuple[int, int], tokens: list[int], logprobs: list[float]) -> Sample:
        ends = [position for position, token in enumerate(tokens) if token in self.policy.eos_ids]
        length = ends[0] + 1 if ends else len(tokens)
        text = self.policy.tokenizer.decode(tokens[:length], skip_special_tokens=True)
        return Sample(*place, encoded[place[0]], tokens[:length], logprobs[:length], text, finished=bool(ends), version=self.version)


class InverseCDFSampler:
    """A logits processor that chooses the token itself, records its log-prob, and leaves generate's greedy search no other choice."""

    def __init__(self, uniforms: Tensor, temperature: float) -> None:
        """uniforms: (B, max_new_tokens) float64 in [0, 1). temperature: >= 0; 0 is greedy, with log-probs at temperature 1."""
        self.uniforms = uniforms
        self.temperature = temperature
        self.logprobs: list[Tensor] = []
        """(B,) fp32, nats, of each position so far."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores that are 0 at the chosen tokens and -inf elsewhere."""
        logprobs = torch.log_softmax(scores.float() / (self.temperature or 1.0), -1)
        if self.temperature == 0:
            chosen = logprobs.argmax(-1, keepdim=True)
        else:
            cdf = logprobs.double().exp().cumsum(-1)
            chosen = torch.searchsorted(cdf, self.uniforms[:, len(self.logprobs), None] * cdf[:, -1:], right=True)
            chosen.clamp_(max=scores.shape[-1] - 1)  # only NaN gets there: its log-prob is NaN, which the caller reports
        self.logprobs.append(logprobs.gather(-1, chosen).squeeze(-1))
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)
