"""AER for trainers that take advantages and hand out log-probs, and have no entropy with a gradient. It needs torch alone.

    aer = SampledEntropy()                                  # BELOW_START
    advantages += aer.advantages(logprobs, loss_mask, prompt, accuracy)          # once for each batch of rollouts

The bonus is `entropy_advantages`, and the entropy that is held is the mean of -logprob over the samples: an unbiased estimate. Everything
happens in one process, that which has the rewards.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from aer_kernels.entropy_control import BELOW_START, EntropyControlConfig
from aer_kernels.integrations.control import check_prompts, held_sums, spread, token_batch, unsolved_share
from aer_kernels.methods import AER, Measured
from aer_kernels.methods.asking import ask, restore, saved
from aer_kernels.objectives.entropy_advantages import entropy_advantages, surprisal_baseline


class SampledEntropy:
    """AER through advantages.

    Args:
        config: as everywhere, but for kind balance, whose slopes need the entropy of every token.
        updates: of the coefficient over the whole run; only tau_end needs it.
        every: calls of `advantages` from one update to the next, >= 1: for a trainer that has one group at a time. Prompts of one call are
            weighed against each other, so that a call with one prompt has no weights.
    Raises:
        ValueError: kind balance, tau_end without updates, or every < 1.
        TypeError: config is none.
    """

    def __init__(self, config: EntropyControlConfig = BELOW_START, updates: int | None = None, every: int = 1) -> None:
        if not isinstance(config, EntropyControlConfig):
            raise TypeError(f"config must be an EntropyControlConfig, got {type(config).__name__}")
        if config.kind == "balance":
            raise ValueError("kind must not be 'balance' where only sampled tokens are known, got 'balance'")
        if every < 1:
            raise ValueError(f"every must be >= 1, got {every}")
        self._method, self._every = AER(config if updates is None else replace(config, updates=updates)), every
        self._baseline: float | None = None
        self._calls = list[tuple[Tensor, Tensor, Tensor]]()  # sums, accuracies, log-probs since the last update

    @torch.no_grad()
    def advantages(self, logprobs: Tensor, loss_mask: Tensor, prompt: Tensor, accuracy: Tensor) -> Tensor:
        """Return what to add to the advantages of a batch, and move the coefficient for the next one (or after `every` calls).

        Args:
            logprobs: (R, T) nats, of the sampled tokens under the policy that sampled them.
            loss_mask: (R, T) bool or 0/1.
            prompt: (R,) int64 in [0, P), ascending: which prompt a response answers.
            accuracy: (P,) in [0, 1], mean reward of each prompt's responses; a prompt with NaN is left out.
        Returns:
            (R, T) fp32, 0 outside loss_mask. For a loss that sums, or takes the mean, over all tokens.
        Raises:
            ValueError: shapes differ, prompt does not ascend, or an accuracy is missing or outside [0, 1].
        """
        _check(logprobs, loss_mask, prompt, accuracy)
        counted = (loss_mask > 0) & ~accuracy.isnan()[prompt, None]
        tokens = token_batch(counted, prompt, accuracy, logprobs=logprobs, advantages=torch.zeros_like(logprobs))
        terms = ask(self._method, tokens)
        assert terms.entropy_coef is not None, "AER always has one"
        added = entropy_advantages(tokens.logprobs, terms.entropy_scale * terms.entropy_coef, self._baseline)
        held = None if terms.held is None else spread(terms.held, counted)
        self._calls.append((held_sums(-logprobs * counted, counted, held), tokens.accuracy, tokens.logprobs))
        if len(self._calls) == self._every:
            self._update()
        return spread(added, counted)

    def _update(self) -> None:
        sums, accuracies, logprobs = zip(*self._calls, strict=True)
        accuracy, sampled = torch.cat(accuracies), torch.cat(logprobs)
        entropy, tokens, responses = torch.stack(sums).sum(0).tolist()
        self._method.update(Measured(entropy, tokens, responses, unsolved_share(accuracy)))
        if len(sampled):
            self._baseline = surprisal_baseline(sampled)  # for the next batch: a token must not enter its own
        self._calls.clear()

    def status(self) -> dict[str, float | None]:
        """Return numbers to log, as those of any method."""
        return self._method.status()

    def state_dict(self) -> dict[str, Any]:
        """Return all that `load_state_dict` needs; plain numbers, safe in JSON."""
        return {"method": saved(self._method), "baseline": self._baseline}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state.

        Raises:
            ValueError: it is another method's, or not whole.
        """
        if set(state) != set(self.state_dict()):
            raise ValueError(f"state must hold {sorted(self.state_dict())}, got {sorted(state)}")
        restore(self._method, state["method"])
        self._baseline = state["baseline"]


def _check(logprobs: Tensor, loss_mask: Tensor, prompt: Tensor, accuracy: Tensor) -> None:
    """Raise ValueError for arguments of `SampledEntropy.advantages` that do not fit together."""
    if logprobs.dim() != 2 or loss_mask.shape != logprobs.shape or prompt.shape != logprobs.shape[:1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (logprobs, loss_mask, prompt))
        raise ValueError(f"logprobs and loss_mask must have shape (R, T), and prompt (R,), got {shapes}")
    check_prompts(prompt, accuracy)
