"""Prompts that are read once: one sequence `[prompt | response 1 | ... | response G]` with a mask that keeps the responses apart.

Each response sees its prompt and itself, and its positions go on from the prompt's end, so that its hidden states are those of the sequence
`[prompt | response]` alone. P + G R tokens pass through the layers in place of G (P + R). A model for which this is not exact (one with
recurrent layers, or with positions that it counts itself) is found at load, on a few tokens (`aer_train.model.probes`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MASKED = ("sdpa", "eager", "flex_attention")
"""Attention implementations that take a mask of pairs of tokens."""


@dataclass(frozen=True)
class SharedPrompts:
    """How a model reads a prompt once for several responses."""

    attention: str
    """One of MASKED."""
    width: int
    """D, of the hidden states."""
    window: int | None
    """Tokens that a sliding or chunked layer sees; None where every layer sees all. The mask knows no windows: longer samples stay
    alone."""

    def together(self, prompt: int, longest: int, count: int) -> int:
        """Return how many of `count` responses of up to `longest` tokens a prompt is best read for.

        All of them, with flex_attention, which skips what the mask forbids. The others pay for every pair of tokens. A layer costs about 24
        D^2 operations a token and 4 D a pair, so that one of k responses costs (P / k + R) (1 + (P + k R) / (6 D)).
        """
        if self.window is not None and prompt + longest > self.window:
            return 1
        if self.attention == "flex_attention":
            return count

        def cost(k: int) -> float:
            return (prompt / k + longest) * (1 + (prompt + k * longest) / (6 * self.width))

        return min(range(1, count + 1), key=cost)

    def mask(self, segments: Tensor) -> Any:
        """Return what the model takes as attention_mask.

        Args:
            segments: (U, L) int64: 0 in the prompt, k in response k, -1 in the padding behind.
        """
        size = segments.shape[1]
        if self.attention == "flex_attention":
            from torch.nn.attention.flex_attention import create_block_mask

            def seen(u: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                return (k <= q) & ((segments[u, k] == 0) | (segments[u, k] == segments[u, q]))

            return create_block_mask(seen, len(segments), None, size, size, device=str(segments.device))
        place, key = torch.arange(size, device=segments.device), segments[:, None, :]
        pairs = (place[None, :] <= place[:, None]) & ((key == 0) | (key == segments[:, :, None]))
        if self.attention == "sdpa":
            return pairs[:, None]
        return torch.zeros(pairs.shape, device=pairs.device).masked_fill(~pairs, torch.finfo(torch.float32).min)[:, None]
