"""First-order entropy change of a policy update, from the log-probs and entropies of the sampled tokens alone.

By (11) the entropy of a row moves with its logits as dH = - sum_v S_v dz_v, S_v = p_v (log p_v + H). A step of size eta along the policy
gradient of the sampled token y, dz_v = eta r A ([v = y] - p_v), and one along the entropy bonus, dz_v = - eta c S_v, change it by

    policy    dH = - eta r A (S_y - sum_v p_v S_v)
    bonus     dH =   eta c sum_v S_v^2

Both sums over the vocabulary are expectations over y ~ p: sum_v p_v S_v = E[S_y] and sum_v S_v^2 = E[S_y (log p_y + H)]. The sampled token
is such a draw, so that, over the tokens of a batch,

    policy slope = - sum_t A_t S_t           bonus slope = sum_t w_t S_t (log p_t + H_t)         S_t = p_t (log p_t + H_t)

are estimates of them that cost nothing: no reduction over the vocabulary. (r = 1, on-policy; the baseline E[S_y] is left out, as advantages
are centred within their group.) Rows are taken by themselves; that parameters are shared, and that Adam rescales them, goes into a common
factor, which cancels in the balance that a controller needs:

    policy slope + alpha * bonus slope = 0   at   alpha = - policy slope / bonus slope

The squared sizes of the two gradients at the logits follow in the same way, with sum_v p_v^2 = E[p_y]: A_t^2 (1 - p_t), and
w_t^2 S_t (log p_t + H_t).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from aer_kernels.validate import per_token


class EntropySlopes(NamedTuple):
    """Sums over tokens, 0-dim float64: add them over micro-batches and ranks."""

    policy: Tensor
    """Entropy change per unit of step size along the policy gradient."""
    bonus: Tensor
    """Entropy change per unit of step size along the bonus at alpha = 1."""
    policy_square: Tensor
    """Squared norm of the policy gradient at the logits."""
    bonus_square: Tensor
    """Squared norm of the bonus' gradient at the logits at alpha = 1."""


@torch.no_grad()
def entropy_slopes(logprobs: Tensor, entropy: Tensor, *, advantages: Tensor, weights: Tensor, loss_mask: Tensor) -> EntropySlopes:
    """Return where policy gradient and entropy bonus move the entropy of these tokens.

    Args:
        logprobs: (...) nats, of the sampled tokens under the policy that sampled them.
        entropy: (...) nats, of the same distributions.
        advantages: (...) or what broadcasts to it.
        weights: the same; w(q) of the token's prompt, the entropy coefficient at alpha = 1.
        loss_mask: (...) bool or 0/1: the tokens that are trained.
    """
    values, pressure = (per_token(name, value, logprobs).double() for name, value in (("advantages", advantages), ("weights", weights)))
    mask = loss_mask.expand(logprobs.shape).flatten()
    surprise, p = (logprobs + entropy).double().flatten(), logprobs.double().exp().flatten()
    slope = p * surprise * mask
    return EntropySlopes(
        -(values * slope).sum(),
        (pressure * slope * surprise).sum(),
        (values.square() * (1 - p) * mask).sum(),
        (pressure.square() * slope * surprise).sum(),
    )
