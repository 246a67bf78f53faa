"""ReLaX's auxiliary loss, our reading: responses that were rewarded are to move through many modes of the policy's latent dynamics.

    g_t   = sigmoid(W x_t)                                   x_t: last hidden state (D,) of a token, W: a dictionary (m, D), frozen
    K     = least-squares solution of  g_{t+1} = K g_t       over the tokens of a response, with a ridge
    S_i   = variance of the moduli of K's m eigenvalues      the spread of response i
    L     = alpha mean over prompts of log mean over its responses of exp( - max(A_i, 0) S_i )

The gradient of a prompt's part is -sum_i w_i max(A_i, 0) dS_i, w the softmax of -max(A_i, 0) S_i over its responses. w is taken from a pass
of the policy that sampled, so that the responses of a prompt may be in different micro-batches; at the first update of a batch it is exact.

Source: arXiv:2512.07558 (CVPR 2026), our reading. The formulas, alpha, and that W is fitted once to the initial policy by the spectral
residual are certain; m is 50 in one note and 10 in another. Ours: the ridge, the variance with 1/m, the gradient through the eigenvalues,
responses of at most m tokens left out (their K is not determined), and `fit_dictionary`. Left out: the paper's divergence to a reference
policy where S is above 10, which needs a reference model. Without `dictionary` W is drawn at random, which the paper does not do. Its code
is not published.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aer_kernels.methods.seam import Stateless, TokenBatch, TokenTerms, check_option

RIDGE = 1e-3
"""Of the least squares, relative to the mean square of g."""


@dataclass(frozen=True)
class RelaxConfig:
    """Options of ReLaX's auxiliary loss."""

    kind: str = "relax"
    alpha: float = 0.1
    """Coefficient of the loss, >= 0."""
    modes: int = 50
    """m, >= 2. Responses of at most this many tokens are left out."""
    dictionary: str | None = None
    """File with W, a (modes, D) tensor that torch.load reads (`fit_dictionary`). None: random, from `seed`."""
    seed: int = 0
    """Of a random dictionary."""

    def __post_init__(self) -> None:
        check_option("alpha", self.alpha, self.alpha >= 0, "be >= 0")
        check_option("modes", self.modes, self.modes >= 2, "be >= 2")


class Relax(Stateless):
    """ReLaX's auxiliary loss, our reading, as a method."""

    Config = RelaxConfig
    needs_logprobs = False
    also_needs = frozenset({"statistic"})

    def __init__(self, config: RelaxConfig) -> None:
        self.config, self._dictionary = config, None if config.dictionary is None else load_dictionary(config.dictionary, config.modes)

    def statistic(self, hidden: Tensor) -> Tensor:
        """S of a response, 0-dim, from its hidden states (T, D); 0 for one of at most m tokens."""
        if self._dictionary is None:
            self._dictionary = random_dictionary(self.config.modes, hidden.shape[-1], self.config.seed)
        if self._dictionary.shape[1] != hidden.shape[-1]:
            raise ValueError(f"dictionary must have {hidden.shape[-1]} columns like the hidden states, got {self._dictionary.shape[1]}")
        return spread(hidden, self._dictionary)

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        statistic = tokens.need("statistic")
        there = torch.zeros_like(statistic, dtype=torch.bool)
        there[tokens.response] = True
        rewarded = torch.zeros_like(statistic).index_put_((tokens.response,), tokens.advantages.clamp(min=0))
        energy = (-rewarded * statistic).exp().masked_fill(~there, 0.0)
        whole = torch.zeros_like(tokens.accuracy).index_add_(0, tokens.prompt, energy)
        weight = energy / whole.clamp(min=torch.finfo(energy.dtype).tiny)[tokens.prompt]
        prompts = max(1, len(tokens.prompt[there].unique()))
        return TokenTerms(statistic_coef=-self.config.alpha * weight * rewarded * (int(there.sum()) / prompts))


def spread(hidden: Tensor, dictionary: Tensor) -> Tensor:
    """Return the variance of the moduli of the eigenvalues of a response's dynamics, 0-dim, differentiable.

    Args:
        hidden: (T, D) states of the T tokens of a response.
        dictionary: (m, D). With T <= m the result is 0, without a gradient.
    """
    modes, dtype = len(dictionary), torch.promote_types(hidden.dtype, torch.float32)
    if len(hidden) <= modes:
        return (hidden.to(dtype) * 0.0).sum()
    observed = (hidden.double() @ dictionary.to(hidden.device).double().T).sigmoid()
    return torch.linalg.eigvals(_dynamics(observed)).abs().var(correction=0).to(dtype)


def _dynamics(observed: Tensor) -> Tensor:
    """K^T, (m, m), from g of the tokens of a response, (T, m)."""
    before, after = observed[:-1], observed[1:]
    square = before.T @ before
    ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype, device=square.device)
    return torch.linalg.solve(square + ridge, before.T @ after)


def random_dictionary(modes: int, width: int, seed: int) -> Tensor:
    """Return a dictionary (modes, width) of independent directions, the same for the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(modes, width, generator=generator, dtype=torch.float64) / math.sqrt(width)


def fit_dictionary(states: Sequence[Tensor], modes: int, *, steps: int = 200, lr: float = 1e-2, seed: int = 0) -> Tensor:
    """Return a dictionary (modes, D) fitted to responses of the initial policy: steps of Adam on the part of their dynamics that K misses.

        sum over responses of || G' - G K ||^2 / || G' - mean G' ||^2,   G and G' the observations before and after, K their least squares

    Args:
        states: hidden states (T, D) of responses with more than `modes` tokens.
    Raises:
        ValueError: no response is long enough.
    """
    long = [hidden.double() for hidden in states if len(hidden) > modes]
    if not long:
        raise ValueError(f"states must hold a response of more than {modes} tokens, got none")
    dictionary = random_dictionary(modes, long[0].shape[1], seed).to(long[0].device).requires_grad_()
    optimizer = torch.optim.Adam([dictionary], lr=lr)
    for _ in range(steps):
        missed = torch.stack([_missed(hidden, dictionary) for hidden in long]).mean()
        optimizer.zero_grad()
        missed.backward()
        optimizer.step()
    return dictionary.detach()


def _missed(hidden: Tensor, dictionary: Tensor) -> Tensor:
    observed = (hidden @ dictionary.T).sigmoid()
    before, after = observed[:-1], observed[1:]
    rest = after - before @ _dynamics(observed)
    return rest.square().sum() / (after - after.mean(0)).square().sum()


def load_dictionary(file: str, modes: int) -> Tensor:
    """Return the dictionary in a file.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"dictionary must name a file with a tensor, got {file!r}: {error}") from error
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != modes:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"dictionary must hold a tensor with {modes} rows (modes), got {shape}")
    return found.double()
