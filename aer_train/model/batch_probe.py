"""Proof that sequences can be trained side by side: what a model computes of one depends neither on padding nor on what comes later.

Not every model is so: some see the whole sequence, some count positions from the padding, some choose among all tokens which ones to attend
to. Their log-probs in a training pass would be others than those of the policy that sampled, without an error.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from aer_train.memory.errors import model_errors
from aer_train.model.policy import Policy, forward_pass
from aer_train.model.positions import positions

LONGEST = 40
"""Tokens of the longest sequence; beyond the windows and choices of small models."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Largest allowed difference of hidden states, as a share of their size (rms, mean over the tokens); those of a wrong model differ by about
1. In bfloat16 a mixture of experts may choose others where it is undecided."""


def prove_batches(policy: Policy, name: str) -> None:
    """Compare beginnings of a sequence, padded beside it, with the same places of the whole sequence alone. All processes must call it
    together.

    Raises:
        ValueError - they differ, or the model cannot compute them.
    """
    with model_errors(f"model.name must be a model that takes a padded batch, got {name!r}"):
        found = _difference(*_states(replace(policy, unpad=False)))
    if not found <= TOLERANCE[policy.dtype]:
        raise ValueError(
            f"model.name must be a causal model that leaves padding out, got {name!r}: in a padded batch, or with more text behind, "
            f"its hidden states differ by {found:.2g} of their size"
        )


@torch.no_grad()
@forward_pass
def _states(policy: Policy) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of a batch (3, T, D) and of its longest sequence alone (1, T, D), float32, and the mask (3, T) of the tokens."""
    limit = positions(policy.model.config)
    size = LONGEST if limit is None else max(1, min(LONGEST, limit))
    ids = torch.arange(size, device=policy.device).mul(7).add(3).remainder(policy.head.weight.shape[0])[None]
    lengths = torch.tensor([[size], [max(1, 2 * size // 3)], [max(1, size // 3)]], device=policy.device)
    mask = (torch.arange(size, device=policy.device) < lengths).long()
    with policy.autocast():
        return policy.hidden(ids * mask, mask).float(), policy.hidden(ids, mask[:1]).float(), mask


def _difference(batch: Tensor, alone: Tensor, mask: Tensor) -> float:
    """rms(batch - alone) / rms(alone), mean over the tokens of a sequence, of the worst one."""
    each = (batch - alone).square().mean(-1).sqrt() / alone.square().mean(-1).sqrt().clamp(min=1e-30)
    return float(((each * mask).sum(1) / mask.sum(1)).max())
