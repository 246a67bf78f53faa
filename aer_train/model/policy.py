"""The policy: a transformers causal LM split into hidden states and lm_head, so that the fused loss never needs logits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from aer_train import sharding
from aer_train.model.shared_prompts import SharedPrompts

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Policy:
    """A model with its tokenizer. Parameters are float32 or bfloat16; products run in `dtype` (autocast)."""

    model: Any
    """transformers causal LM, always in evaluation mode: what is trained is what sampled."""
    tokenizer: Any
    head: nn.Linear
    """The lm_head; its weight may be tied to the embedding."""
    softcap: float | None
    """Final logit softcap of the model (Gemma 2), or None."""
    dtype: torch.dtype
    eos_ids: frozenset[int]
    """Every token that ends a response: those of the generation config, the tokenizer's own, and the chat template's end of a turn."""
    generation_config: Any
    """As published, for the checkpoints. The model itself holds a neutral one: penalties or top-k would bend the rollouts."""
    scale: float = 1.0
    """What the model multiplies its logits with, before the cap (Cohere, Granite)."""
    stops: tuple[str, ...] = ()
    """Texts that end a response wherever they are written."""
    unpad: bool = False
    """Whether `hidden` leaves out the padding."""
    shared: SharedPrompts | None = None
    """How a prompt is read once for several responses; None: it is read for each."""

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def body(self) -> Any:
        """The model without its head."""
        return body_of(self.model)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which forward passes, sampling and training alike, run."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, dtype=self.dtype)

    def gathered(self) -> AbstractContextManager[None]:
        """Context in which `model` may be called at will, a different number of times on every rank; without gradients."""
        return sharding.gathered(self.model)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the final hidden states (B, T, D) of right-padded input_ids (B, T)."""
        if self.unpad:
            return self._unpadded(input_ids, attention_mask)
        return self.body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state

    def hidden_shared(self, input_ids: Tensor, segments: Tensor, positions: Tensor) -> Tensor:
        """Return the final hidden states (U, L, D) of sequences of a prompt and its responses (U, L); see `SharedPrompts`."""
        assert self.shared is not None
        mask = self.shared.mask(segments)
        return self.body(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state

    def _unpadded(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`hidden`, 0 at padding: positions that begin again tell the model where the next sequence starts."""
        real = attention_mask.flatten().nonzero().squeeze(1)
        positions = (attention_mask.cumsum(1) - 1).flatten()[real]
        body = self.body(input_ids=input_ids.flatten()[real][None], position_ids=positions[None], use_cache=False)
        states = body.last_hidden_state[0]
        return states.new_zeros(input_ids.numel(), states.shape[1]).index_copy(0, real, states).view(*input_ids.shape, -1)


def body_of(model: Any) -> Any:
    """Return a causal LM of transformers without its head."""
    base, embedding = model.base_model, model.get_input_embeddings()
    if base is not model:
        return base
    return next((part for part in base.children() if embedding in part.modules()), base)  # Llama 4 has another name for it


def forward_pass(function: Callable[Concatenate[Policy, P], T]) -> Callable[Concatenate[Policy, P], T]:
    """Decorate a function of a policy that uses its hidden states and its head: with a sharded policy, both are whole only inside.

    All ranks must call it together. Its result is a dataclass or tuple of tensors, some of them differentiable.
    """

    @wraps(function)
    def wrapped(policy: Policy, *args: P.args, **kwargs: P.kwargs) -> T:
        return sharding.forward_pass(policy.model, lambda: function(policy, *args, **kwargs))

    return wrapped
