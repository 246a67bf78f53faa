"""What is there for trainers with more than the seam: credit by segment, a Q-value of every token, a critic with variances."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from aer_kernels.methods import Stateless, TokenBatch, TokenTerms, make_method
from aer_kernels.methods.advantage_variance import advantage_variance, optimistic, value_variances
from aer_kernels.methods.segments import segment_shift, segments_at
from aer_kernels.methods.token_q import token_q_loss
from tests.kernels.token_batches import batch

# --- segments


def test_segments_begin_with_responses_and_where_they_are_told_to():
    tokens = batch()
    assert segments_at(tokens, torch.zeros(10, dtype=torch.bool)).tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 3, 3]
    starts = torch.tensor([False, True, False, True, False, False, False, False, True, True])
    assert segments_at(tokens, starts).tolist() == [0, 1, 1, 2, 3, 3, 4, 4, 5, 6]
    nothing = batch(((0, 0),))
    assert segments_at(nothing, torch.zeros(0, dtype=torch.bool)).numel() == 0


def test_values_become_shifts():
    tokens = replace(batch(), advantages=torch.tensor([1.0, 1.0, 1.0, -1.0, 0.5, 0.5, 2.0, 2.0, 2.0, 2.0]))
    segment = segments_at(tokens, torch.tensor([False, True, False, False, False, False, False, False, True, False]))
    values = torch.tensor([3.0, 0.0, -1.0, 0.5, 1.0, 5.0])
    shift = segment_shift(tokens, segment, values, preserve=False)
    assert (tokens.advantages + shift).tolist() == [3, 0, 0, -1, 0.5, 0.5, 1, 1, 5, 5]
    kept = tokens.advantages + segment_shift(tokens, segment, values)
    assert kept.tolist() == pytest.approx([3, 0, 0, -1, 0.5, 0.5, 0, 0, 4, 4]), "each response's mean is as it was"
    whole = segments_at(tokens, torch.zeros(10, dtype=torch.bool))
    assert torch.equal(segment_shift(tokens, whole, torch.tensor([9.0, -2.0, 4.0, 0.0])), torch.zeros(10)), (
        "one segment is GRPO, bit for bit"
    )
    nothing = batch(((0, 0),))
    assert segment_shift(nothing, torch.zeros(0, dtype=torch.int64), torch.zeros(0)).numel() == 0


def test_segments_without_a_value_are_refused():
    tokens = batch()
    with pytest.raises(ValueError, match=r"segment must have shape \(10,\), got \(3,\)"):
        segment_shift(tokens, torch.zeros(3, dtype=torch.int64), torch.ones(1))
    with pytest.raises(ValueError, match=r"values must have shape \(S,\) with S > 4, the last segment, got \(4,\)"):
        segment_shift(tokens, torch.arange(10) // 2, torch.ones(4))


@dataclass(frozen=True)
class BySegmentConfig:
    kind: str = "tests.kernels.test_method_functions.BySegment"


class BySegment(Stateless):
    """A method on the carrier: a segment begins at each token of high entropy, and is worth more the later it is."""

    Config = BySegmentConfig
    needs_entropy = True

    def __init__(self, config: BySegmentConfig) -> None:
        pass

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        segment = segments_at(tokens, tokens.need("entropy") > 1.0)
        return TokenTerms(shift=segment_shift(tokens, segment, torch.arange(int(segment[-1]) + 1 if len(segment) else 0)))


def test_a_method_on_the_carrier():
    tokens = batch()
    terms = make_method(BySegmentConfig()).terms(tokens)
    torch.testing.assert_close(tokens.per_response(terms.shift), torch.zeros(5, dtype=torch.float64), atol=1e-6, rtol=0)


# --- Q of every token


def test_token_q_loss_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    q = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss = token_q_loss(logits, q, loss_mask=mask, beta=0.3)
    p = logits.softmax(-1)
    entropy = -(p * p.log()).sum(-1)
    expected = (mask * (-0.3 * entropy - (p * q).sum(-1))).sum() / 3
    torch.testing.assert_close(loss, expected)
    (found,) = torch.autograd.grad(loss, logits)
    with torch.no_grad():
        baseline = (p * q).sum(-1, keepdim=True)
        closed = mask[..., None] * (0.3 * p * (p.log() + entropy[..., None]) - p * (q - baseline)) / 3
    torch.testing.assert_close(found, closed, rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(lambda x: token_q_loss(x, q, loss_mask=mask, beta=0.3, normalizer=2.0), logits)


def test_what_a_q_changes():
    """A uniform Q nothing, another Q something (in the release nothing either), masked and impossible tokens nothing."""
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = torch.ones(4)

    def gradient(q, of=logits):
        x = of.clone().requires_grad_()
        (found,) = torch.autograd.grad(token_q_loss(x, q, loss_mask=mask), x)
        return found

    none, uniform = gradient(torch.zeros(4, 9)), gradient(torch.full((4, 9), 50.0, dtype=torch.float64))
    torch.testing.assert_close(uniform, none, atol=1e-12, rtol=0)
    assert (gradient(torch.randn(4, 9, generator=torch.Generator().manual_seed(2))) - none).abs().max() > 1e-3
    impossible = logits.clone()
    impossible[:, 3] = -torch.inf
    assert gradient(torch.ones(4, 9), impossible).isfinite().all()
    assert token_q_loss(logits, torch.zeros(4, 9), loss_mask=torch.zeros(4)) == 0
    for options, match in (
        ({"q": torch.zeros(4, 8), "loss_mask": mask}, r"logits, q and loss_mask must have shapes .* got \(4, 9\), \(4, 8\) and \(4,\)"),
        ({"q": torch.zeros(4, 9), "loss_mask": mask, "beta": -1.0}, "beta must be >= 0, got -1.0"),
    ):
        with pytest.raises(ValueError, match=match):
            token_q_loss(logits, **options)


# --- a critic with variances


def gae(values, gamma, lam):
    """(..., n) from (..., n + 1) values; rewards are known, and add no variance."""
    found, last = [], torch.zeros_like(values[..., 0])
    for step in reversed(range(values.shape[-1] - 1)):
        last = gamma * values[..., step + 1] - values[..., step] + gamma * lam * last
        found.append(last)
    return torch.stack(found[::-1], -1)


@pytest.mark.parametrize("gamma, lam", [(0.99, 0.95), (1.0, 1.0), (0.9, 0.3)])
def test_variance_of_an_advantage(gamma, lam):
    """The estimate is linear in independent values: its variance is the sum of squared coefficients, found one value at a time."""
    variances = torch.rand(7, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.2
    coefficients = gae(torch.eye(7, dtype=torch.float64), gamma, lam)
    expected = (coefficients.square() * variances[:, None]).sum(0)
    torch.testing.assert_close(advantage_variance(variances, gamma=gamma, lam=lam), expected)
    independent = advantage_variance(variances, gamma=gamma, lam=lam, form="independent")
    torch.testing.assert_close(expected - independent, variances[:-1] * (1 - (1 - lam) / (1 + lam)))


def test_variance_by_simulation():
    """A number found once by simulation: 1.46 for twelve steps."""
    generator = torch.Generator().manual_seed(0)
    deviation = torch.rand(13, generator=generator, dtype=torch.float64) + 0.2
    found = advantage_variance(deviation.square()[None], gamma=0.99, lam=0.95)
    assert found.shape == (1, 12) and float(found[0, 0]) == pytest.approx(1.46, abs=0.005)
    values = deviation * torch.randn(100_000, 13, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(gae(values, 0.99, 0.95).var(0), found[0], rtol=0.02, atol=0)


def test_optimism_and_what_the_critic_says():
    aleatoric, epistemic = value_variances(torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([4.0]))
    assert (aleatoric.item(), epistemic.item()) == (2.0, 1.0)
    advantages, variance = torch.tensor([1.0, -1.0]), torch.tensor([4.0, 0.25])
    assert optimistic(advantages, variance, 0.5).tolist() == [2.0, -0.75] and torch.equal(optimistic(advantages, variance, 0.0), advantages)
    with pytest.raises(ValueError, match=r"alpha must be > 1, got 1\.0"):
        value_variances(torch.ones(1), torch.ones(1), torch.ones(1))
    for options, match in (
        ({"gamma": 0.0, "lam": 0.5}, r"gamma must be in \(0, 1\], got 0.0"),
        ({"gamma": 1.0, "lam": 1.5}, r"lam must be in \(0, 1\], got 1.5"),
        ({"gamma": 1.0, "lam": 1.0, "form": "mean"}, "form must be one of 'correlated', 'independent', got 'mean'"),
    ):
        with pytest.raises(ValueError, match=match):
            advantage_variance(torch.ones(3), **options)
    with pytest.raises(ValueError, match=r"variances must have shape \(..., n \+ 1\) with n >= 1, got \(1,\)"):
        advantage_variance(torch.ones(1), gamma=1.0, lam=1.0)
