"""What an adapter needs between a trainer's padded tensors and a `Method`. It needs torch alone.

    tokens = token_batch(loss_mask, prompt, accuracy, logprobs=..., advantages=...)       # all ranks, before the batch is cut
    terms = method.terms(tokens)
    coef = spread(terms.entropy_coef, loss_mask)                                          # (N,) -> (R, T), for the trainer's loss
    sums.add_entropy(entropy, loss_mask, held)                                            # each micro-batch, without a device sync
    method.update(sums.measured(reduce, unsolved))                                        # one reduction over ranks

R responses padded to T tokens, N loss tokens, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aer_kernels.methods import Measured, TokenBatch
from aer_kernels.objectives.entropy_change import EntropySlopes


def group_accuracy(correct: Tensor, prompt: Tensor, source: str, remedy: str) -> Tensor:
    """Return the mean over each prompt's scored responses, (P,) fp32; NaN where none was scored.

    Args:
        correct: (R,) in [0, 1], or NaN where nothing could be scored.
        prompt: (R,) int64 in [0, P), every number at least once.
        source: where the numbers come from, for the error.
        remedy: what else can be named, for the error.
    Raises:
        ValueError: a number lies outside [0, 1]. Reads them: a device sync on a GPU.
    """
    outside = correct[(correct < 0) | (correct > 1)]
    if outside.numel():
        raise ValueError(f"accuracy must lie in [0, 1], got {float(outside[0]):g} from {source}: {remedy}")
    scored = ~correct.isnan()
    total = torch.zeros(2, int(prompt.max()) + 1 if len(prompt) else 0, dtype=torch.float64, device=correct.device)
    total.index_add_(1, prompt, torch.stack([correct.double().nan_to_num(), scored.double()]))
    return (total[0] / total[1]).float()


def unsolved_share(accuracy: Tensor) -> float | None:
    """Return the share of prompts that no response solved, from (P,) accuracies; None where there is no prompt."""
    return float((accuracy <= 0).float().mean()) if len(accuracy) else None


def check_prompts(prompt: Tensor, accuracy: Tensor) -> None:
    """Check which prompt each response answers, (R,), and the accuracy of each prompt, (P,) with NaN where there is none.

    Raises:
        ValueError: prompt does not ascend in [0, P), or an accuracy lies outside [0, 1]. Reads them: a device sync on a GPU.
    """
    if bool((prompt.diff() < 0).any()) or (len(prompt) and int(prompt[0]) < 0):
        raise ValueError(f"prompt must ascend from 0 or more, got {prompt.tolist()}")
    if accuracy.dim() != 1 or (len(prompt) and int(prompt[-1]) >= len(accuracy)):
        raise ValueError(f"accuracy must have a number for each prompt, shape (P,), got shape {tuple(accuracy.shape)}")
    if bool(((accuracy < 0) | (accuracy > 1)).any()):
        raise ValueError(f"accuracy must lie in [0, 1], got {accuracy.tolist()}")


def token_batch(
    loss_mask: Tensor,
    prompt: Tensor,
    accuracy: Tensor,
    *,
    logprobs: Tensor | None,
    advantages: Tensor,
    entropy: Tensor | None = None,
    reference_entropy: Tensor | None = None,
    seed: int = 0,
) -> TokenBatch:
    """Return the loss tokens of padded responses.

    Args:
        loss_mask: (R, T) bool. Where the accuracy of a prompt is NaN it must hold no token.
        prompt: (R,) int64 in [0, P), ascending.
        accuracy: (P,) in [0, 1]. A prompt with NaN is left out of the batch.
        logprobs: (R, T) nats, of the policy that sampled. None: the method does not look at them, and gets NaN.
        advantages: (R, T) fp32.
        entropy: (R, T) nats, of the same distributions, where the method needs them.
        reference_entropy: (R, T) nats, of the policy that the run began with, likewise.
        seed: for random choices of the method; another one at every update.
    Raises:
        TypeError, ValueError: an argument is not of this form, or an accuracy lies outside [0, 1]. Reads them: a device sync on a GPU, as
            finding the loss tokens is one anyway.
    """
    if loss_mask.dtype != torch.bool:
        raise TypeError(f"loss_mask must have dtype bool, got {loss_mask.dtype}")
    if loss_mask.ndim != 2 or prompt.shape != loss_mask.shape[:1]:
        raise ValueError(f"loss_mask must have shape (R, T) and prompt (R,), got {tuple(loss_mask.shape)} and {tuple(prompt.shape)}")
    given = {"logprobs": logprobs, "advantages": advantages, "entropy": entropy, "reference_entropy": reference_entropy}
    for name, values in given.items():
        if values is not None and values.shape != loss_mask.shape:
            raise ValueError(f"{name} must have shape {tuple(loss_mask.shape)} like loss_mask, got {tuple(values.shape)}")
    check_prompts(prompt, accuracy)
    response, position = loss_mask.nonzero(as_tuple=True)
    return flat_batch(
        response,
        position,
        prompt,
        accuracy,
        logprobs=None if logprobs is None else logprobs[loss_mask],
        advantages=advantages[loss_mask],
        entropy=None if entropy is None else entropy[loss_mask],
        reference_entropy=None if reference_entropy is None else reference_entropy[loss_mask],
        seed=seed,
    )


def flat_batch(
    response: Tensor,
    position: Tensor,
    prompt: Tensor,
    accuracy: Tensor,
    *,
    logprobs: Tensor | None,
    advantages: Tensor,
    entropy: Tensor | None = None,
    reference_entropy: Tensor | None = None,
    rewards: Tensor | None = None,
    seed: int = 0,
    text: list[str] | None = None,
) -> TokenBatch:
    """Return loss tokens that are flat already; arguments as for `token_batch`, numbers of tokens (N,), and as of `TokenBatch`."""
    scored = ~accuracy.isnan()
    number = (scored.cumsum(0) - 1).clamp(min=0)  # of the prompts that are left
    flat = advantages.float()
    return TokenBatch(
        torch.full_like(flat, torch.nan) if logprobs is None else logprobs.float(),
        flat,
        response,
        position,
        number[prompt],
        accuracy[scored].float(),
        seed,
        None if entropy is None else entropy.float(),
        rewards,
        text=text,
        reference_entropy=None if reference_entropy is None else reference_entropy.float(),
    )


def spread(values: Tensor, loss_mask: Tensor, fill: float = 0.0) -> Tensor:
    """Return a number of each loss token, (N,), in its place among padded responses, (R, T) fp32, and `fill` elsewhere.

    Terms are of the whole update: spread them over its whole mask, and then cut both into micro-batches.

    Raises:
        ValueError: values has not one number a loss token. Counts them: a device sync on a GPU.
    """
    count = int(loss_mask.sum())
    if values.shape != (count,):
        raise ValueError(f"values must have shape ({count},), one number a token of loss_mask, got {tuple(values.shape)}")
    return torch.full(loss_mask.shape, fill, device=values.device).masked_scatter(loss_mask, values.float())


def held_sums(entropy: Tensor, loss_mask: Tensor, held: Tensor | None) -> Tensor:
    """Return (3,) float64: entropy, tokens and responses, each as much as it is held (`TokenTerms.held`).

    Args:
        entropy: (R, T) nats.
        loss_mask: (R, T) bool or 0/1.
        held: (R, T) >= 0, 0 outside loss_mask; None: 1 for every loss token.
    """
    kept = loss_mask.double() if held is None else held.double()
    responses = kept.sum(1) / loss_mask.sum(1).clamp(min=1)
    return torch.stack([(kept * entropy.double()).sum(), kept.sum(), responses.sum()])


class Sums:
    """What micro-batches show, summed on their device; it is read once an update."""

    def __init__(self) -> None:
        self._held: Tensor | None = None
        self._slopes: Tensor | None = None

    def add_entropy(self, entropy: Tensor, loss_mask: Tensor, held: Tensor | None) -> None:
        """Add a pass of the policy that sampled; arguments as for `held_sums`."""
        found = held_sums(entropy.detach(), loss_mask, held)
        self._held = found if self._held is None else self._held + found

    def add_slopes(self, slopes: EntropySlopes) -> None:
        """Add where the policy gradient, and a unit of entropy_scale, move the entropy."""
        found = torch.stack([slopes.policy, slopes.bonus])
        self._slopes = found if self._slopes is None else self._slopes + found

    def measured(self, reduce: Callable[[Tensor], Tensor], unsolved: float | None, parts: int = 1) -> Measured:
        """Return the sums over all ranks, and start again from 0.

        Args:
            reduce: (5,) float64 of this rank -> its sum over ranks. Every rank calls it once.
            unsolved: share of the prompts that no sample solved.
            parts: number of batches of which each has a `held` of its own, made from that batch alone; what they show is averaged.
        Raises:
            ValueError: nothing was added.
        """
        if self._held is None:
            raise ValueError("sums must hold a pass before they are read, got none")
        slopes = torch.zeros_like(self._held[:2]) if self._slopes is None else self._slopes
        entropy, tokens, responses, policy, bonus = (reduce(torch.cat([self._held, slopes])) / parts).tolist()
        seen = self._slopes is not None
        self._held = self._slopes = None
        return Measured(entropy, tokens, responses, unsolved, (policy, bonus) if seen else None)
