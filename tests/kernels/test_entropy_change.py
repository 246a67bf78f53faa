"""The slopes of the entropy against finite differences of the entropy itself."""

import pytest
import torch

from aer_kernels.objectives.entropy_change import entropy_slopes

ROWS, VOCAB = 6, 11


@pytest.fixture
def logits():
    return 2.0 * torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def entropy_of(logits):
    logp = torch.log_softmax(logits, -1)
    return -(logp.exp() * logp).sum(-1)


def every_token(logits):
    """All tokens of all rows as if each had been sampled, with its probability to weigh it: sums over them are exact expectations."""
    logp = torch.log_softmax(logits, -1)
    return logp, entropy_of(logits)[:, None].expand_as(logp), logp.exp()


def test_bonus_slope_is_the_entropy_change_of_a_step_along_the_bonus(logits):
    """z + eta dH/dz changes H by eta |dH/dz|^2: central difference against the expectation over sampled tokens."""
    step = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(entropy_of(step).sum(), step)
    eta = 1e-5
    measured = (entropy_of(logits + eta * gradient) - entropy_of(logits - eta * gradient)) / (2 * eta)
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    logprobs, entropy, p = every_token(logits)
    found = entropy_slopes(
        logprobs, entropy, advantages=torch.zeros(1), weights=weights[:, None] * p, loss_mask=torch.ones_like(p, dtype=torch.bool)
    )
    assert found.bonus.item() == pytest.approx((weights * measured).sum().item(), rel=1e-8)


def test_policy_slope_is_the_entropy_change_of_a_step_along_the_policy_gradient(logits):
    """Advantages whose mean under the policy is 0 (a centred group): then the omitted baseline is exactly nothing."""
    logprobs, entropy, p = every_token(logits)
    advantages = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    advantages = advantages - (p * advantages).sum(-1, keepdim=True)
    gradient = p * advantages - p * (p * advantages).sum(-1, keepdim=True)  # sum_y p_y A_y ([v = y] - p_v)
    eta = 1e-5
    measured = (entropy_of(logits + eta * gradient) - entropy_of(logits - eta * gradient)) / (2 * eta)
    found = entropy_slopes(
        logprobs, entropy, advantages=advantages * p, weights=torch.zeros(1), loss_mask=torch.ones_like(p, dtype=torch.bool)
    )
    assert found.policy.item() == pytest.approx(measured.sum().item(), rel=1e-8)


def test_squares_are_those_of_the_gradients(logits):
    """Of A ([v = y] - p) and of w dH/dz: their expectation over the sampled token, by summing over all of them."""
    logprobs, entropy, p = every_token(logits)
    step = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(entropy_of(step).sum(), step)
    rows = torch.eye(VOCAB, dtype=torch.float64) - p[:, None, :]  # (row, y, v)
    root = p.sqrt()  # its square weighs the token by its probability
    found = entropy_slopes(logprobs, entropy, advantages=3.0 * root, weights=root, loss_mask=torch.ones_like(p))
    assert found.policy_square.item() == pytest.approx((9.0 * p * rows.square().sum(-1)).sum().item(), rel=1e-9)
    assert found.bonus_square.item() == pytest.approx(gradient.square().sum().item(), rel=1e-9)


def test_signs_masks_and_sums():
    """Rewarding a token that is likelier than typical lowers entropy, rewarding a rare one raises it; masked tokens count nowhere."""
    logprobs, entropy = torch.tensor([[-0.1, -3.0, 0.0]]), torch.tensor([[0.5, 0.5, 0.0]])
    mask = torch.tensor([[True, True, False]])
    slope = lambda advantages, mask: entropy_slopes(  # noqa: E731
        logprobs, entropy, advantages=torch.tensor(advantages), weights=torch.ones(1, 1), loss_mask=mask
    )
    assert slope([[1.0, 0.0, 5.0]], mask)[0] < 0 < slope([[0.0, 1.0, 5.0]], mask)[0]
    parts = [slope([[1.0, 2.0, 3.0]], torch.tensor([[i == j for j in range(3)]])) for i in range(2)]
    whole = slope([[1.0, 2.0, 3.0]], mask)
    assert whole[0] == pytest.approx(sum(p[0] for p in parts)) and whole[1] == pytest.approx(sum(p[1] for p in parts))


def test_bad_shapes():
    with pytest.raises(ValueError, match="advantages must have a shape that broadcasts"):
        entropy_slopes(torch.zeros(2, 3), torch.zeros(2, 3), advantages=torch.zeros(4), weights=torch.zeros(1), loss_mask=torch.ones(2, 3))
