"""The fused head in verl's FSDP models: fp32 statistics whatever the dtype, and tokens without a gradient cost nothing backward.

verl's models make log-probs and entropy with `FusedLinearForPPO`, which they import at each forward pass. **Importing this module puts ours
in its place**, in this process: verl imports it in every worker as `actor_rollout_ref.model.external_lib`, which `+aer.head=true` sets.
"""

from __future__ import annotations

import torch
import verl
from torch import Tensor
from verl.models.transformers import dense_common
from verl.utils.experimental import torch_functional

from aer_kernels.api import fused_logprobs
from aer_kernels.inputs import autocast
from aer_kernels.integrations.guard import check_parameters, looks_up

NAME = "FusedLinearForPPO"
"""What verl's models look up in `verl.utils.experimental.torch_functional`."""


class AERLinearForPPO(torch.nn.Module):
    """Takes the place of verl's `FusedLinearForPPO`. It has no parameters; `chunk_size` and `impl_backend` choose among verl's own."""

    def __init__(self, chunk_size: int = 512, impl_backend: str = "torch") -> None:
        super().__init__()

    def forward(self, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return log-probs and entropy of softmax(hidden_states vocab_weights^T / temperature), both (...) fp32, nats.

        Args:
            hidden_states: (..., D).
            vocab_weights: (V, D), taken in the dtype of autocast, else of the hidden states.
            input_ids: (...) int, the tokens to score.
            temperature: > 0.
        """
        hidden_states, vocab_weights = autocast(hidden_states, vocab_weights)
        found = fused_logprobs(hidden_states, vocab_weights.to(hidden_states.dtype), input_ids.long(), temperature=float(temperature))
        return found.logprobs, found.entropy


def use_aer_head() -> None:
    """Let verl's models use `AERLinearForPPO`, in this process.

    Raises:
        ImportError: verl's own takes other arguments, or its models do not look it up by name.
    """
    library = f"verl {verl.__version__}"
    theirs = getattr(torch_functional, NAME)
    if theirs is AERLinearForPPO:
        return
    check_parameters(theirs.__init__, ("chunk_size", "impl_backend"), "aer.head=true", library)
    check_parameters(theirs.forward, ("hidden_states", "vocab_weights", "input_ids", "temperature"), "aer.head=true", library)
    if not looks_up(dense_common.forward_with_torch_backend.__code__, NAME):
        raise ImportError(f"aer.head=true must be used with a tested version: models do not look up {NAME} in {library}")
    setattr(torch_functional, NAME, AERLinearForPPO)


use_aer_head()
