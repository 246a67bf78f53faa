"""Rollouts with the policy itself: each prompt is read once, its samples grow side by side, and those that have ended leave the batch.

The k-th token of sample j of prompt p at step s is the inverse CDF of the tempered distribution at u(run seed, s, p, j, k).
Batches, padding and whatever else runs in the process cannot change it (beyond the rounding of the logits).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aer_train.config import RolloutConfig
from aer_train.data import encode_prompt
from aer_train.model import Policy
from aer_train.rollout.protocol import ordered
from aer_train.seeds import generator
from aer_train.types import Prompt, Sample

LEAVING_SHARE = 1 / 8
"""Ended sequences leave when they are this share of the batch: leaving copies the cache, staying computes tokens that nobody reads."""

CDF_BLOCK = 512
"""Tokens whose probabilities are summed before any cumulative sum is taken: one pass over the vocabulary in place of several."""


class HFRollout:
    """Samples responses with the policy itself, in its present state. See `protocol.Rollout`."""

    def __init__(self, policy: Policy, config: RolloutConfig) -> None:
        self.policy = policy
        self.config = config
        self.version = 0
        """Training steps behind the weights that sample."""

    def generate(
        self, prompts: list[Prompt], group_size: int, seed: tuple[int | str, ...], temperature: float | None = None, first: int = 0
    ) -> list[Sample]:
        """Return the samples of `stream`, ordered by prompt, then index."""
        return ordered(self.stream(prompts, group_size, seed, temperature, first))

    def stream(
        self, prompts: list[Prompt], group_size: int, seed: tuple[int | str, ...], temperature: float | None = None, first: int = 0
    ) -> Iterator[list[Sample]]:
        """Yield them as they end."""
        temperature = self.config.temperature if temperature is None else temperature
        encoded = {first + p: encode_prompt(self.policy.tokenizer, prompt.text) for p, prompt in enumerate(prompts)}
        places = [(p, index) for p in encoded for index in range(group_size)]
        places.sort(key=lambda place: len(encoded[place[0]]))  # stable: less padding in a batch
        with self.policy.gathered():
            for start in range(0, len(places), self.config.batch_size):
                yield from self._batch(encoded, places[start : start + self.config.batch_size], seed, temperature)

    def release(self) -> None:
        """Nothing is held that training could use."""

    def sync(self, version: int) -> dict[str, float | None]:
        """Nothing to do: the policy samples by itself."""
        self.version = version
        return {"rollout/version": version}

    def close(self) -> None:
        """Nothing to close."""

    def _batch(
        self, encoded: dict[int, list[int]], places: list[tuple[int, int]], seed: tuple[int | str, ...], temperature: float
    ) -> Iterator[list[Sample]]:
        limit = self.config.max_new_tokens
        uniforms = np.stack([generator(*seed, prompt, index).random(limit) for prompt, index in places])
        growing = Growing(self.policy, [encoded[prompt] for prompt, _ in places], uniforms, temperature)
        while len(growing.rows):
            rows, tokens, logprobs = growing.until_some_end()
            yield self._samples(encoded, [places[row] for row in rows], tokens, logprobs)

    def _samples(
        self, encoded: dict[int, list[int]], places: list[tuple[int, int]], tokens: list[list[int]], logprobs: list[list[float]]
    ) -> list[Sample]:
        """Responses cut after their end-of-sequence token."""
        ends = [next((position for position, token in enumerate(row) if token in self.policy.eos_ids), None) for row in tokens]
        tokens = [row if end is None else row[: end + 1] for row, end in zip(tokens, ends, strict=True)]
        texts = self.policy.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [
            Sample(*place, encoded[place[0]], row, found[: len(row)], text, finished=end is not None, version=self.version)
            for place, row, found, text, end in zip(places, tokens, logprobs, texts, ends, strict=True)
        ]


class Growing:
    """Sequences that grow side by side, a token at a time. R of them are left."""

    def __init__(self, policy: Policy, prompts: list[list[int]], uniforms: np.ndarray, temperature: float) -> None:
        """
        Args:
            prompts: tokens, one list a sequence; equal ones are read once.
            uniforms: (sequences, most tokens of a response) float64 in [0, 1), what each token is drawn with.
            temperature: >= 0; 0 is greedy, with log-probs at temperature 1.
        """
        from transformers import DynamicCache

        device = policy.device
        self.policy, self.temperature = policy, temperature
        self.rows = torch.arange(len(prompts), device=device)
        """(R,) which sequences are left."""
        self.uniforms = torch.from_numpy(uniforms).to(device)
        self.tokens = torch.zeros(self.uniforms.shape, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(self.uniforms.shape, device=device)
        self.ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        """(R,)"""
        self.length = 0
        """Tokens that every response has so far."""
        self._ends = torch.tensor(sorted(policy.eos_ids), device=device)
        self._cache: Any = DynamicCache(config=policy.model.config)
        known = inspect.signature(policy.model.base_model.forward).parameters
        self._takes_positions = "position_ids" in known
        self._cache_name = "past_key_values" if "past_key_values" in known else "cache_params"  # state-space models
        self.policy.model.eval()
        self._read(prompts)

    @torch.no_grad()
    def until_some_end(self) -> tuple[list[int], list[list[int]], list[list[float]]]:
        """Grow until enough sequences have ended to let them go; return which, with the tokens and log-probs (nats) of their responses.

        What a response holds after its end-of-sequence token means nothing.

        Raises:
            FloatingPointError - a log-prob is not finite.
        """
        with self.policy.autocast():  # around many tokens: leaving it drops the weights that it has cast
            while True:
                chosen = self._draw()
                last = self.length == self.tokens.shape[1]
                if last or self.ended.sum() >= LEAVING_SHARE * len(self.rows):
                    break
                self._grow(chosen[:, None])
            gone = self.rows if last else self.rows[self.ended]
            kept = self.rows[:0] if last else (~self.ended).nonzero().squeeze(1)
            if len(kept):
                self._keep(kept)
                self._grow(chosen[kept, None])
            else:
                self.rows = kept
        tokens, logprobs = self.tokens[gone, : self.length], self.logprobs[gone, : self.length]
        if not logprobs.isfinite().all():
            raise FloatingPointError("logits must be finite, got NaN or infinity while sampling: the policy has diverged, lower optim.lr")
        return gone.tolist(), tokens.tolist(), logprobs.tolist()

    @torch.no_grad()
    def _read(self, prompts: list[list[int]]) -> None:
        """Read the prompts, padded on the left, and give each sequence its copy of the cache."""
        device, different = self.policy.device, list(dict.fromkeys(map(tuple, prompts)))
        lengths = torch.tensor([len(prompt) for prompt in different])
        self._width = width = int(lengths.max())
        input_ids = torch.full((len(different), width), self.policy.tokenizer.pad_token_id)
        for row, prompt in enumerate(different):
            input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        positions = torch.arange(width) - (width - lengths)[:, None]
        mask = torch.cat([positions >= 0, torch.ones(len(different), self.tokens.shape[1], dtype=torch.bool)], 1)
        self._mask = None if mask.all() else mask.long().to(device)  # (R, every position that there can be)
        self._positions = positions.clamp(min=0).to(device)
        with self.policy.autocast():
            self._grow(input_ids.to(device))
        number = {prompt: row for row, prompt in enumerate(different)}
        self._copy(torch.tensor([number[tuple(prompt)] for prompt in prompts], device=device))

    def _draw(self) -> Tensor:
        """Choose the next token of every sequence, and record it. Returns the tokens (R,)."""
        chosen, logprobs = draw(self._logits, self.uniforms[self.rows, self.length], self.temperature)
        self.tokens[self.rows, self.length], self.logprobs[self.rows, self.length] = chosen, logprobs
        self.ended |= torch.isin(chosen, self._ends)
        self.length += 1
        return chosen

    def _grow(self, input_ids: Tensor) -> None:
        """Append tokens (R, T) to the cache and compute the logits (R, V) of what comes next."""
        options = {self._cache_name: self._cache} | ({"position_ids": self._positions} if self._takes_positions else {})
        mask = None if self._mask is None else self._mask[:, : self._width + self.length]
        output = self.policy.model.base_model(input_ids=input_ids, attention_mask=mask, use_cache=True, **options)
        self._positions = self._positions[:, -1:] + 1
        logits = self.policy.head(output.last_hidden_state[:, -1]).float()
        softcap = self.policy.softcap
        self._logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)

    def _keep(self, index: Tensor) -> None:
        """Go on with some of the sequences."""
        self._copy(index)
        self.rows, self.ended = self.rows[index], self.ended[index]

    def _copy(self, index: Tensor) -> None:
        """Make the cache and what belongs to it that of these of its rows."""
        self._cache.reorder_cache(index)
        self._positions, self._logits = self._positions[index], self._logits[index]
        self._mask = None if self._mask is None else self._mask[index]


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the token of each row at its place in the tempered distribution (inverse CDF), and its log-prob.

    Args:
        logits: (R, V) float32.
        uniforms: (R,) float64 in [0, 1).
        temperature: >= 0; 0 is the argmax, with log-probs at temperature 1.
    Returns:
        (R,) int64, never a token of probability 0; (R,) float32, nats, NaN where the logits are not finite.
    """
    top = logits.amax(-1, keepdim=True)
    scaled = logits - top
    if temperature not in (0, 1):
        scaled /= temperature
    weights = scaled.exp_()
    size, vocab_size = CDF_BLOCK, logits.shape[-1]
    whole = vocab_size - vocab_size % size
    sums = torch.cat([weights[:, :whole].unflatten(-1, (-1, size)).sum(-1), weights[:, whole:].sum(-1, keepdim=True)], 1).double()
    cdf = sums.cumsum(-1)
    if temperature == 0:
        chosen = logits.argmax(-1, keepdim=True)
    else:
        point = uniforms[:, None] * cdf[:, -1:]
        block = _first_above(cdf, point)
        columns = block * size + torch.arange(min(size, vocab_size), device=logits.device)
        inside = weights.gather(-1, columns.clamp(max=vocab_size - 1)).double().masked_fill_(columns >= vocab_size, 0.0)
        chosen = block * size + _first_above(inside.cumsum(-1), (point - (cdf - sums).gather(-1, block)).clamp(min=0))
    logprobs = (logits.gather(-1, chosen) - top) / (temperature or 1.0) - cdf[:, -1:].log().float()
    return chosen.squeeze(-1), logprobs.squeeze(-1)


def _first_above(cdf: Tensor, point: Tensor) -> Tensor:
    """The first place (R, 1) of each row (R, n) whose value is above its point (R, 1); rounding may not carry the point to the end."""
    end = cdf[:, -1:]
    place = torch.searchsorted(cdf, torch.minimum(point, end.nextafter(torch.zeros_like(end))), right=True)
    return place.clamp_(max=cdf.shape[-1] - 1)  # only NaN gets there: its log-prob is NaN, which the caller reports
