"""The entropy bonus as advantages, for trainers that can change advantages and have no entropy with a gradient.

    A_t <- A_t + coef_t (-logprob_t - b_t)          b_t: the entropy of the distribution, or any number that the drawn token does not move

Over y ~ p, E[(-log p_y - b) grad log p_y] = grad H whatever b is, since E[grad log p_y] = 0: the policy gradient of these advantages is an
unbiased estimate of the gradient of sum_t coef_t H_t, as long as the tokens come from the policy that is trained. What it costs is noise:
a token's estimate is one draw, where the bonus itself sums over the vocabulary. Its variance at the logits is

    sum_y p_y (-log p_y - b)^2 |e_y - p|^2 - |grad H|^2,     |e_y - p|^2 = 1 - 2 p_y + sum_v p_v^2

which is least where b is the mean surprisal with p_y |e_y - p|^2 as weights. Where tokens are nearly certain that is far above H, since a
draw of the likely token hardly moves anything: `surprisal_baseline` estimates it from the draws (docs/integrations/recipes.md has figures).
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def entropy_advantages(logprobs: Tensor, coef: Tensor | float, entropy: Tensor | float | None = None) -> Tensor:
    """Return what to add to the advantages of sampled tokens, coef * (-logprobs - entropy).

    Args:
        logprobs: (...) float, nats, of the sampled tokens under the policy that sampled them, at the temperature of the loss.
        coef: broadcastable to logprobs; > 0 raises entropy. For a loss that is a mean over tokens it is the coefficient of the bonus; where
            the loss weighs a token differently from the mean over tokens, divide by that.
        entropy: broadcastable to logprobs, nats: the baseline b, which the token must not enter. The entropy of its distribution, or
            better, `surprisal_baseline` of an earlier batch. None: 0, which leaves the most noise.
    Returns:
        (...) like logprobs, without a gradient.
    Raises:
        ValueError: a shape does not broadcast to that of logprobs.
    """
    baseline = 0.0 if entropy is None else entropy
    for name, value in (("coef", coef), ("entropy", baseline)):
        if isinstance(value, Tensor) and torch.broadcast_shapes(value.shape, logprobs.shape) != logprobs.shape:
            raise ValueError(f"{name} must broadcast to the shape of logprobs {tuple(logprobs.shape)}, got {tuple(value.shape)}")
    return coef * (-logprobs - baseline)


@torch.no_grad()
def surprisal_baseline(logprobs: Tensor) -> float:
    """Return one baseline for all tokens, nats: sum w_t (-logprob_t) / sum w_t, w_t = (1 - p_t)^2, the least that |e_y - p|^2 can be.

    Args:
        logprobs: (N,) float, nats, of the sampled loss tokens of a batch; 0 is returned where all are certain.
    """
    weights = (-logprobs.double().expm1()).square()
    total = float(weights.sum())
    return float((weights * -logprobs.double()).sum()) / total if total > 0 else 0.0
