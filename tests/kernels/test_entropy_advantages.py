"""Entropy advantages: their policy gradient is that of the entropy, by enumeration of all tokens, and the baseline only takes noise away."""

import math

import pytest
import torch

from aer_kernels import entropy_advantages, surprisal_baseline


def distribution(vocabulary: int, scale: float, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    logp = logits.log_softmax(0)
    return -(logp.exp() * logp).sum()


def estimates(logits: torch.Tensor, coef: float, baseline: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """For every token that could be drawn: its probability, and the gradient at the logits that it would give, (V, V)."""
    logp = logits.log_softmax(0)
    advantages = entropy_advantages(logp, coef, baseline)
    return logp.exp(), advantages[:, None] * (torch.eye(len(logits), dtype=torch.float64) - logp.exp())


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("baseline", ["entropy", None, 0.7])
def test_the_mean_over_all_tokens_is_the_gradient_of_the_entropy(scale: float, baseline: str | float | None) -> None:
    logits = distribution(50, scale).requires_grad_()
    entropy = entropy_of(logits)
    (exact,) = torch.autograd.grad(0.3 * entropy, logits)
    p, each = estimates(logits.detach(), 0.3, float(entropy.detach()) if baseline == "entropy" else baseline)
    torch.testing.assert_close((p[:, None] * each).sum(0), exact, rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0, 8.0])
def test_how_much_noise_a_baseline_leaves(scale: float) -> None:
    """Variance at the logits: the entropy takes some away; least is left by the mean surprisal in which y weighs |[v = y] - p|^2."""
    logits = distribution(50, scale)
    p, logp = logits.softmax(0), logits.log_softmax(0)
    size = 1 - 2 * p + p.square().sum()
    best = float((p * size * -logp).sum() / (p * size).sum())
    entropy = float(entropy_of(logits))
    noise = []
    for baseline in (best, entropy, None, 0.9 * best, 1.1 * best):
        p, each = estimates(logits, 1.0, baseline)
        noise.append(float((p[:, None] * (each - (p[:, None] * each).sum(0)).square()).sum()))
    assert noise[0] == min(noise) and noise[1] < noise[2]


def test_a_baseline_for_all_tokens() -> None:
    """From draws of many peaked distributions: less noise than the entropy of each, as the certain draws hardly count; none where all are."""
    many = [distribution(50, 6.0, seed) for seed in range(200)]
    logp = torch.stack([logits.log_softmax(0) for logits in many])
    drawn = torch.multinomial(logp.exp(), 20, replacement=True, generator=torch.Generator().manual_seed(0))
    constant = surprisal_baseline(logp.gather(1, drawn).flatten())
    noise = {"constant": 0.0, "entropy": 0.0, "none": 0.0}
    for logits in many:
        for name, baseline in (("constant", constant), ("entropy", float(entropy_of(logits))), ("none", None)):
            p, each = estimates(logits, 1.0, baseline)
            noise[name] += float((p[:, None] * (each - (p[:, None] * each).sum(0)).square()).sum())
    assert noise["constant"] < noise["entropy"] < noise["none"]
    assert surprisal_baseline(torch.zeros(3)) == 0.0 == surprisal_baseline(torch.zeros(0))
    assert surprisal_baseline(torch.tensor([0.0, math.log(0.5)])) == pytest.approx(math.log(2))


def test_it_broadcasts_and_refuses_what_does_not() -> None:
    logprobs, coef, entropy = torch.randn(3, 4), torch.rand(3, 1), torch.rand(3, 4)
    found = entropy_advantages(logprobs.requires_grad_(), coef, entropy)
    assert not found.requires_grad
    torch.testing.assert_close(found, coef * (-logprobs.detach() - entropy))
    assert math.isclose(float(entropy_advantages(torch.tensor(-2.0), 0.5)), 1.0)
    with pytest.raises(ValueError, match=r"coef must broadcast to the shape of logprobs \(3, 4\), got \(2, 3, 4\)"):
        entropy_advantages(logprobs, torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match=r"entropy must broadcast to the shape of logprobs \(4,\), got \(3, 1\)"):
        entropy_advantages(torch.randn(4), 1.0, torch.ones(3, 1))
