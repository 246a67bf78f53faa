"""Proofs on a few tokens, made at load: what cannot be trained rightly is refused before the first step."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from aer_train.memory.errors import model_errors
from aer_train.model.head import candidates, finish
from aer_train.model.policy import Policy, forward_pass
from aer_train.model.positions import positions
from aer_train.model.shared_prompts import MASKED, SharedPrompts

PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
"""Largest allowed difference of two logits or hidden states by the dtype of the products, relative to the largest (1 would be a different
model)."""


WINDOW = re.compile(r"(^|_)window(_size)?$|^(attention_)?chunk_size$|^local_attention$|^index_topk$")
"""Names of options of a model's config that limit how many tokens a layer sees."""

OWN_MASK = "its attention has a mask of its own for a sequence of its own length"


def prove_head(policy: Policy, name: str) -> Policy:
    """Return the policy with the multiplier and the cap under which cap(s (hidden @ head.T + bias)) are the model's own logits.

    Raises:
        ValueError - there are none that its config names: it would silently be another policy that is trained.
    """
    with model_errors(f"model.name must be a causal language model of the usual form, got {name!r}"):
        products, theirs = _both_logits(policy)
    if not theirs.isfinite().all():
        raise ValueError(f"model.name must be a model with finite weights, got {name!r}, whose logits are NaN or infinite")
    config = policy.model.config.get_text_config()
    found = [(difference(finish(each, products), theirs), each) for each in candidates(policy, config)]
    right = [pair for pair in found if pair[0] <= PROBE_TOLERANCE[policy.dtype]]
    if not right:
        raise ValueError(
            f"model.name must be a model with a readable lm_head, got {name!r}: "
            f"hidden states times lm_head differ from its logits by {min(found, key=_first)[0]:.3g} of the largest"
        )
    # a cap that its config names also holds where the logits of a few tokens are too small to show it
    return min((pair for pair in right if pair[1].softcap == right[0][1].softcap), key=_first)[1]


@torch.no_grad()
@forward_pass
def _both_logits(policy: Policy) -> tuple[Tensor, Tensor]:
    """hidden @ head.T + bias, and the logits of the model, (1, T, V) float32."""
    ids = probe_tokens(policy)[:1]
    mask = torch.ones_like(ids)
    with policy.autocast():  # flash attention computes in bfloat16 only
        ours = policy.head(policy.hidden(ids, mask))
        theirs = policy.model.forward(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return ours.float(), theirs.float()


def model_logits(policy: Policy) -> Tensor:
    """Return the model's own logits of a few tokens, (1, T, V) float32."""
    return _both_logits(policy)[1]


def _first(pair: tuple[float, Policy]) -> float:
    return pair[0]


@torch.no_grad()
@forward_pass
def probe_unpadded(policy: Policy, name: str) -> None:
    """Compare hidden states without padding with those of padded sequences: not every model keeps the sequences apart."""
    if _has_own_mask(policy):
        raise ValueError(f"model.unpad must be False for {name!r}, got True: {OWN_MASK}")
    ids = probe_tokens(policy)
    mask = (torch.arange(ids.shape[1], device=ids.device) < torch.tensor([[5], [8], [3]], device=ids.device)).long()
    with policy.autocast():
        together, apart = policy.hidden(ids, mask), replace(policy, unpad=False).hidden(ids, mask)
    found = difference(together.float(), (apart * mask[..., None]).float())
    if not found <= PROBE_TOLERANCE[policy.dtype]:
        raise ValueError(
            f"model.unpad must be False for {name!r}, got True: its hidden states without padding differ by {found:.3g} of the largest"
        )


def share_prompts(policy: Policy, name: str, wanted: bool | None) -> Policy:
    """Return the policy with its way to read prompts once, or as it is where that would not be exact.

    Args:
        wanted: `model.share_prompts`; None takes what is possible.
    Raises:
        ValueError - it is wanted and not possible.
    """
    if wanted is False:
        return policy
    config = policy.model.config.get_text_config()
    attention = getattr(config, "_attn_implementation", None) or "eager"
    shared = SharedPrompts(attention, policy.head.weight.shape[1], _window(config))
    reason = f"attention {attention} takes no mask of pairs" if attention not in MASKED else "model.unpad is on" if policy.unpad else ""
    reason = reason or (OWN_MASK if _has_own_mask(policy) else _differs(replace(policy, shared=shared)))
    if not reason:
        return replace(policy, shared=shared)
    if wanted:
        raise ValueError(f"model.share_prompts must be false or left out for {name!r}, got true: {reason}")
    return policy


def _window(config: Any) -> int | None:
    """The fewest tokens that a layer is limited to, as the config names them."""
    unused = {"sliding_window"} if getattr(config, "use_sliding_window", True) is False else set[str]()
    limits = [value for name, value in vars(config).items() if WINDOW.search(name) and name not in unused]
    return min((limit for limit in limits if type(limit) is int and limit > 0), default=None)


def _has_own_mask(policy: Policy) -> bool:
    """Whether the model keeps masks of its own, which know places in a sequence and no others (GPT-Neo)."""
    limit = positions(policy.model.config)
    return any(tensor.ndim >= 2 and tensor.shape[-1] == tensor.shape[-2] == limit for tensor in policy.model.buffers())


def _differs(policy: Policy) -> str:
    """Why the hidden states of two responses that share a prompt are not those of each alone; empty where they are."""
    try:
        found = _probed_difference(policy)
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError, NotImplementedError) as error:  # whatever its code makes of it
        return f"its layers refuse the mask ({type(error).__name__})"
    return "" if found <= PROBE_TOLERANCE[policy.dtype] else f"hidden states of its responses differ by {found:.3g} of the largest"


@torch.no_grad()
@forward_pass
def _probed_difference(policy: Policy) -> float:
    """[a | b | c] in one sequence, beside [a | b] and [a | c]."""
    a, b, c = probe_tokens(policy)[:, :5]
    together, segments = torch.cat([a, b, c])[None], torch.arange(3, device=a.device).repeat_interleave(5)[None]
    positions = torch.cat([torch.arange(5), torch.arange(5, 10), torch.arange(5, 10)]).to(a.device)[None]
    alone = torch.stack([torch.cat([a, b]), torch.cat([a, c])])
    with policy.autocast():
        shared = policy.hidden_shared(together, segments, positions).float()[0]
        apart = policy.hidden(alone, torch.ones_like(alone)).float()
    return max(difference(shared[:10], apart[0]), difference(shared[10:], apart[1, 5:]))


def probe_tokens(policy: Policy) -> Tensor:
    """(3, 8), all sequences different."""
    return torch.arange(24, device=policy.device).mul(7).add(3).remainder(policy.head.weight.shape[0]).view(3, 8)


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value."""
    if found.shape != expected.shape:
        return torch.inf
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
