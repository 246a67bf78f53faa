"""What a scoring pass can tell of each token beside its log-prob: floors of its logits, and sums over its squared probabilities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from aer_kernels.inputs import prepare_head
from aer_kernels.operators import HeadArguments
from aer_kernels.operators.complete_rows import floors, moments
from aer_kernels.reference import temper
from aer_kernels.validate import check_at_least, per_token

SUPPORT_MARGIN = 1e-3
"""Nats below the smallest logit of a recorded support: the rounding of another product must not leave a token out."""

SUPPORT_ELEMENTS = 1 << 24
"""Elements of the lm_head's rows that are gathered at a time."""


@torch.no_grad()
def fused_floors(
    hidden: Tensor,
    weight: Tensor,
    *,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    crossing: bool = True,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    loss_mask: Tensor | None = None,
    memory_budget: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """Return the floor of each token's logits for `floor` of `fused_logprobs` and `fused_policy_loss`, without the (N, V) logits.

        top_p  the most likely tokens whose probabilities reach top_p
        top_k  the top_k most likely tokens
        min_p  tokens at least min_p times as likely as the most likely one

    The kept set is {v: z_v >= floor}. The floor lies half way between the last logit of the set and the next one, so that the rounding of
    another pass does not move a token over it; equal logits stay together.

    Args:
        hidden: (..., D), as in `fused_logprobs`, and so are bias, temperature and softcap.
        weight: (V, D), likewise.
        top_p: in (0, 1]. Exactly one of top_p, top_k and min_p is given.
        top_k: >= 1.
        min_p: in (0, 1].
        crossing: whether the token with which top_p is reached is kept, as samplers keep it. The most likely one always is.
        loss_mask: (...) bool or 0/1; other tokens get -inf and cost nothing.
        memory_budget: as in `fused_policy_loss`.
        impl: likewise; "reference" is "torch".
    Returns:
        (...) fp32, nats of the tempered logits; -inf where all are kept. Not differentiable.
    Raises:
        ValueError: a shape, device or range is wrong, or not exactly one of the three is given.
        TypeError: a dtype is wrong.
    Notes:
        2 N*V*D FLOPs, and about 34 reads of the logits of a row from the cache on a GPU (a bisection in place of a sort).
    """
    given = {"top_p": top_p, "top_k": top_k, "min_p": min_p}
    chosen = [(name, value) for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise ValueError(f"exactly one of top_p, top_k and min_p must be given, got {', '.join(name for name, _ in chosen) or 'none'}")
    ((kind, wanted),) = chosen
    if kind == "top_k":
        check_at_least("top_k", wanted, 1)
    elif not 0 < wanted <= 1:
        raise ValueError(f"{kind} must be in (0, 1], got {wanted}")
    if not crossing and (kind != "top_p" or wanted == 1):
        raise ValueError("crossing must be True unless top_p is below 1, got False")
    targets = torch.zeros(hidden.shape[:-1], dtype=torch.int64, device=hidden.device)
    head = _head(hidden, weight, targets, bias, temperature, softcap, loss_mask, memory_budget, impl, debug_checks=False)
    return floors(*head, kind, float(wanted), crossing).view(targets.shape)


class TokenMoments(NamedTuple):
    """Per-token results in the shape of targets, fp32, 0 at tokens that do not count; nothing is differentiable."""

    logprobs: Tensor
    """Nats."""
    entropy: Tensor
    """H, nats."""
    logsumexp: Tensor
    """Nats."""
    max_prob: Tensor
    """Probability of the most likely token, in (0, 1]."""
    sum_squares: Tensor
    """sum_v p_v^2, in (0, 1]."""
    squares_surprise: Tensor
    """sum_v p_v^2 (log p_v + H), nats: the mean over the policy of S_y = p_y (log p_y + H) of `objectives.entropy_change`."""


@torch.no_grad()
def fused_moments(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    loss_mask: Tensor | None = None,
    memory_budget: int | None = None,
    impl: str = "auto",
    debug_checks: bool | None = None,
) -> TokenMoments:
    """Return log-prob, entropy and the moments of each token's distribution, without the (N, V) logits.

    Args:
        hidden: (..., D), as in `fused_logprobs`, and so are all others but the last two.
        weight: (V, D), likewise.
        targets: (...), likewise.
        memory_budget: as in `fused_policy_loss`.
        impl: likewise; "reference" is "torch".
    Returns:
        TokenMoments, each (...) fp32.
    Raises:
        ValueError: a shape, device or range is wrong.
        TypeError: a dtype is wrong.
    Notes:
        2 N*V*D FLOPs; the logits of a row are read twice where `fused_logprobs` reads them once.
    """
    head = _head(hidden, weight, targets, bias, temperature, softcap, loss_mask, memory_budget, impl, debug_checks)
    return TokenMoments(*(x.view(targets.shape) for x in moments(*head)))


@torch.no_grad()
def support_floors(
    hidden: Tensor,
    weight: Tensor,
    support: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Return the floor under which a recorded support of each token lies: the smallest of its logits, less SUPPORT_MARGIN.

    Args:
        hidden: (..., D), as in `fused_logprobs`, and so are bias, temperature and softcap.
        weight: (V, D), likewise.
        support: (..., K) int64, the tokens that a sampler drew from, -1 where there are fewer than K.
    Returns:
        (...) fp32, nats. The kept set is the support where the sampler kept its most likely tokens. Not differentiable.
    Raises:
        ValueError: shapes do not fit, or a token has no support.
    """
    if support.ndim < 1 or support.shape[:-1] != hidden.shape[:-1]:
        raise ValueError(f"support must have shape (*{tuple(hidden.shape[:-1])}, K), got {tuple(support.shape)}")
    if not bool((support >= 0).any(-1).all()):
        raise ValueError("support must hold at least one token for each position, got one with none")
    flat, ids = hidden.reshape(-1, hidden.shape[-1]).float(), support.reshape(-1, support.shape[-1])
    divisor = per_token("temperature", temperature, support[..., 0]).float() if isinstance(temperature, Tensor) else temperature
    found = []
    size = max(1, SUPPORT_ELEMENTS // (ids.shape[1] * flat.shape[1]))
    for start in range(0, len(flat), size):
        rows = slice(start, start + size)
        chosen = ids[rows].clamp(min=0)
        raw = torch.einsum("nkd,nd->nk", weight[chosen].float(), flat[rows])
        if bias is not None:
            raw = raw + bias[chosen].float()
        z = temper(raw, None, divisor[rows] if isinstance(divisor, Tensor) else divisor, softcap)
        found.append(z.masked_fill(ids[rows] < 0, torch.inf).amin(1) - SUPPORT_MARGIN)
    return torch.cat(found).view(support.shape[:-1]) if found else flat.new_empty(support.shape[:-1])


def _head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float | Tensor,
    softcap: float | None,
    loss_mask: Tensor | None,
    memory_budget: int | None,
    impl: str,
    debug_checks: bool | None,
) -> HeadArguments:
    head, _ = prepare_head(
        hidden,
        weight,
        targets,
        bias=bias,
        lora_a=None,
        lora_b=None,
        lora_scale=1.0,
        temperature=temperature,
        softcap=softcap,
        floor=None,
        floor_scope="all",
        loss_mask=loss_mask,
        ignore_index=-100,
        main_grad=None,
        vocab_group=None,
        vocab_start=None,
        select_rows=None,
        batch_invariant=False,
        memory_budget=memory_budget,
        impl="torch" if impl == "reference" else impl,
        debug_checks=debug_checks,
    )
    return head
