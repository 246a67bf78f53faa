"""Responses that the policy writes side by side: each prompt is read once, and those that have ended leave the batch."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aer_train.model import Logits, Policy, response_text, text_end
from aer_train.rollout.heads import keys_are_shared
from aer_train.rollout.pick import pick_tokens
from aer_train.step.padding import pad_id
from aer_train.types import Sampling

LEAVING_SHARE = 1 / 8
"""Ended sequences leave when they are this share of the batch: leaving copies the cache, staying computes tokens that nobody reads."""


class Growing:
    """Sequences that grow side by side, a token at a time. R of them are left."""

    def __init__(self, policy: Policy, prompts: list[list[int]], uniforms: np.ndarray, sampling: Sampling) -> None:
        """
        Args:
            prompts: tokens, one list a sequence; equal ones are read once.
            uniforms: (sequences, most tokens of a response) float64 in [0, 1), what each token is drawn with.
            sampling: what they are drawn from; greedy log-probs are those at temperature 1.
        """
        from transformers import DynamicCache

        device = policy.device
        self.policy, self.sampling = policy, sampling
        self.rows = torch.arange(len(prompts), device=device)
        """(R,) which sequences are left."""
        self.uniforms = torch.from_numpy(uniforms).to(device)
        self.tokens = torch.zeros(self.uniforms.shape, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(self.uniforms.shape, device=device)
        self.ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        """(R,)"""
        self.length = 0
        """Tokens that every response has so far."""
        self._head = Logits(policy)
        self._ends = torch.tensor(sorted(policy.eos_ids), device=device)
        self._reach = max((len(stop.encode()) for stop in policy.stops), default=0) + 8
        """Tokens at the end of a response that may hold a text that has just ended it."""
        self._cache: Any = DynamicCache(config=policy.model.config)
        known = inspect.signature(policy.body.forward).parameters
        self._takes_positions = "position_ids" in known
        self._cache_name = "past_key_values" if "past_key_values" in known else "cache_params"  # state-space models
        self._read(prompts)

    @torch.no_grad()
    def until_some_end(self) -> tuple[list[int], list[list[int]], list[list[float]]]:
        """Grow until enough sequences have ended to let them go; return which, with the tokens and log-probs (nats) of their responses.

        What a response holds after its end means nothing.

        Raises:
            FloatingPointError - a log-prob is not finite.
        """
        with self.policy.autocast():  # around many tokens: leaving it drops the weights that it has cast
            while True:
                chosen = self._pick()
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
    def step(self) -> None:
        """Append a token to every sequence, ended or not."""
        self._grow(self._pick()[:, None])

    @torch.no_grad()
    def _read(self, prompts: list[list[int]]) -> None:
        """Read the prompts, padded on the left, and give each sequence its copy of the cache."""
        device, different = self.policy.device, list(dict.fromkeys(map(tuple, prompts)))
        lengths = torch.tensor([len(prompt) for prompt in different])
        self._width = width = int(lengths.max())
        input_ids = torch.full((len(different), width), pad_id(self.policy))
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

    def _pick(self) -> Tensor:
        """Choose the next token of every sequence, and record it. Returns the tokens (R,)."""
        chosen, logprobs = pick_tokens(self.logits, self.uniforms[self.rows, self.length], self.sampling)
        self.tokens[self.rows, self.length], self.logprobs[self.rows, self.length] = chosen, logprobs
        self.ended |= torch.isin(chosen, self._ends)
        self.length += 1
        if self.policy.stops:
            self.ended |= self._written()
        return chosen

    def _grow(self, input_ids: Tensor) -> None:
        """Append tokens (R, T) to the cache and compute the logits (R, V) of what comes next."""
        options = {self._cache_name: self._cache} | ({"position_ids": self._positions} if self._takes_positions else {})
        mask = None if self._mask is None else self._mask[:, : self._width + self.length]
        with keys_are_shared(self.policy.device):
            output = self.policy.body(input_ids=input_ids, attention_mask=mask, use_cache=True, **options)
        self._positions = self._positions[:, -1:] + 1
        self.logits = self._head(output.last_hidden_state[:, -1])

    def _written(self) -> Tensor:
        """(R,) which sequences have written a text that ends them."""
        stops, latest = self.policy.stops, self.tokens[self.rows, max(0, self.length - self._reach) : self.length].tolist()
        recent = [text_end(stops, response_text(self.policy, tokens)) is not None for tokens in latest]
        for place in (place for place, found in enumerate(recent) if found):  # alone they may read differently than behind what is before
            whole = self.tokens[self.rows[place], : self.length].tolist()
            recent[place] = text_end(stops, response_text(self.policy, whole)) is not None
        return torch.tensor(recent, device=self.ended.device)

    def _keep(self, index: Tensor) -> None:
        """Go on with some of the sequences."""
        self._copy(index)
        self.rows, self.ended = self.rows[index], self.ended[index]

    def _copy(self, index: Tensor) -> None:
        """Make the cache and what belongs to it that of these of its rows."""
        self._cache.reorder_cache(index)
        self._positions, self.logits = self._positions[index], self.logits[index]
        self._mask = None if self._mask is None else self._mask[index]
