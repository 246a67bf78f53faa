"""Proof that a model can be sampled from as `Growing` does it: prompts of different lengths side by side, with a cache.

Not every model can: some state-space models read the padding, and some have a cache of their own kind. Their responses would come from
another distribution, without an error.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aer_train.memory.errors import model_errors
from aer_train.model import Logits, Policy
from aer_train.model.positions import positions
from aer_train.rollout.growing import Growing
from aer_train.types import Sampling

LENGTHS, STEPS = (40, 12), 8
"""Tokens of the two prompts, and places of each response that are looked at; fewer for a model with few positions."""

TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 0.1}
"""Largest allowed difference of logits by the dtype of the products, as a share of their spread (rms). A wrong distribution has about 1,
and one whose steps bound something that its whole sequences do not (or the other way) has about 1e-3."""

GPU_FLOAT32 = 1e-3
"""The same for float32 on a GPU, where convolutions and recurrent layers may compute in TF32."""


@torch.no_grad()
def prove_rollouts(policy: Policy) -> None:
    """Compare the logits of two sequences that grow side by side with those of each alone. All processes must call it together.

    Raises:
        ValueError - they are others, or cannot be computed.
    """
    prompts, steps = _sizes(policy)
    rule = f"rollout.backend must be vllm or vllm_server for {type(policy.model).__name__}, got hf"
    with model_errors(rule), policy.gathered(), policy.autocast():
        together, tokens = _together(policy, prompts, steps)
        apart = [_alone(policy, prompt, response) for prompt, response in zip(prompts, tokens, strict=True)]
    difference = _difference(together, torch.stack(apart))
    if not difference <= (GPU_FLOAT32 if policy.dtype == torch.float32 and policy.device.type != "cpu" else TOLERANCE[policy.dtype]):
        raise ValueError(f"{rule}: beside a longer prompt, with padding and a cache, its logits differ by {difference:.2g} of their spread")


def _sizes(policy: Policy) -> tuple[list[list[int]], int]:
    """Tokens of the two prompts, and how many places are looked at."""
    room = positions(policy.model.config) or sum(LENGTHS)
    steps = max(1, min(STEPS, room // 3))
    long = max(1, min(LENGTHS[0], room - steps))
    short = max(1, min(LENGTHS[1], long // 2))
    ids = torch.arange(long + short).mul(7).add(3).remainder(policy.head.weight.shape[0]).tolist()
    return [ids[:long], ids[long:]], steps


def _together(policy: Policy, prompts: list[list[int]], steps: int) -> tuple[Tensor, list[list[int]]]:
    """Logits (2, steps, V) of sequences that grow side by side, and the tokens of the responses."""
    growing = Growing(policy, prompts, np.full((2, steps), 0.5), Sampling())
    found = [growing.logits]
    for _ in range(steps - 1):
        growing.step()
        found.append(growing.logits)
    return torch.stack(found, 1), growing.tokens[:, : steps - 1].tolist()


def _alone(policy: Policy, prompt: list[int], response: list[int]) -> Tensor:
    """Logits (places, V) of one sequence, without padding and cache."""
    ids = torch.tensor([prompt + response], device=policy.device)
    states = policy.body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
    return Logits(policy)(states[0, len(prompt) - 1 :])


def _difference(found: Tensor, expected: Tensor) -> float:
    """rms(found - expected) / rms(expected - mean), mean over the places of a response, of the worse one."""
    spread = (expected - expected.mean(-1, keepdim=True)).square().mean(-1).sqrt()
    return float(((found - expected).square().mean(-1).sqrt() / spread.clamp(min=1e-30)).mean(-1).max())
