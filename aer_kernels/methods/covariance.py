"""The covariance of a token: how far its advantage and its log-prob are both above, or both below, the mean.

    cov_t = (A_t - mean A)(logprob_t - mean logprob)

Its mean over the tokens is, up to the step size, minus the entropy that a policy-gradient step takes away (arXiv:2505.22617, theorem 1).
The means are over all loss tokens of the update. The authors' release takes them over each micro-batch, and calls that an approximation of
this.
"""

from __future__ import annotations

from torch import Tensor

from aer_kernels.methods.seam import TokenBatch


def token_covariance(tokens: TokenBatch) -> Tensor:
    """Return (A - mean A) (logp - mean logp) of each token, (N,) float64; means are of the update."""
    advantages, logprobs = tokens.advantages.double(), tokens.logprobs.double()
    return (advantages - advantages.mean()) * (logprobs - logprobs.mean())


def part_of(count: int, share: float) -> int:
    """How many a share of some tokens is: rounded down, at least 1 unless the share is 0."""
    return max(1, int(share * count)) if share > 0 and count else 0
