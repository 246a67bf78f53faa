"""The reference is the truth of every other test, so it is checked against independent definitions and finite differences."""

import pytest
import torch
from torch.autograd import gradcheck

from aer_kernels import fused_logprobs, fused_policy_loss
from aer_kernels.objectives.policy import PolicyInputs, Surrogate, policy_tokens
from aer_kernels.reference import divergence, policy_surrogate, rollout_weights
from aer_kernels.testing import head_inputs


def double(inputs):
    return inputs.double().requires_grad("hidden", "weight", "bias")


def test_equals_cross_entropy_and_categorical():
    x = head_inputs(9, 31, 8, bias=True).double()
    out = fused_logprobs(x.hidden, x.weight, x.targets, bias=x.bias, temperature=0.7, impl="reference")
    logits = (x.hidden @ x.weight.T + x.bias) / 0.7
    torch.testing.assert_close(out.logprobs, -torch.nn.functional.cross_entropy(logits, x.targets, reduction="none"), rtol=0, atol=1e-12)
    torch.testing.assert_close(out.entropy, torch.distributions.Categorical(logits=logits).entropy(), rtol=0, atol=1e-12)
    torch.testing.assert_close(out.logsumexp, logits.logsumexp(-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.6}, {"softcap": 3.0}, {"temperature": torch.tensor([0.5, 1.0, 2.0, 0.9]), "softcap": 5.0}], ids=str
)
def test_gradcheck_logprobs(impl, options):
    x = double(head_inputs(4, 11, 5, bias=True))

    def run(hidden, weight, bias):
        out = fused_logprobs(hidden, weight, x.targets, bias=bias, impl=impl, **options)
        return out.logprobs, out.entropy

    assert gradcheck(run, (x.hidden, x.weight, x.bias))


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("objective", ["ppo", "cispo"])
def test_gradcheck_policy_loss(impl, objective):
    """On-policy CISPO and the clipped detached ratio are not the gradient of their value, so CISPO is checked with a constant ratio weight."""
    x = double(head_inputs(6, 11, 5, bias=True, peak=2.0))
    old = fused_logprobs(x.hidden, x.weight, x.targets, bias=x.bias, impl="reference").logprobs.detach()
    shift = torch.tensor([0.0, 0.1, -0.1, 0.9, -0.9, 0.05], dtype=torch.float64)
    clip = {"clip_low": 0.0, "clip_high": 0.0} if objective == "cispo" else {"dual_clip": 3.0}

    def run(hidden, weight, bias):
        return fused_policy_loss(
            hidden, weight, x.targets, bias=bias, advantages=torch.tensor([1.0, -1.0, 0.5, 1.0, -2.0, 0.0], dtype=torch.float64),
            old_logprobs=old - shift, ref_logprobs=old + 0.3, kl_coef=0.2, entropy_coef=0.1, objective=objective, impl=impl, **clip,
        ).loss  # fmt: skip

    assert gradcheck(run, (x.hidden, x.weight, x.bias))


OBJECTIVES = {
    "ppo": Surrogate("ppo", 0.2, 0.2, None),
    "clip_higher": Surrogate("ppo", 0.2, 0.5, None),
    "dual_clip": Surrogate("ppo", 0.2, 0.2, 1.5, "k1"),
    "squared_distance": Surrogate("ppo", 0.2, 0.2, None, "k2"),
    "distance": Surrogate("ppo", 0.2, 0.2, None, "abs_k1"),
    "cispo": Surrogate("cispo", 0.9, 0.4, None, "k3"),
    "rollout_weights": Surrogate("ppo", 0.2, 0.2, None, "k3", 1.3),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_closed_form_coefficients_equal_autograd(name):
    surrogate = OBJECTIVES[name]
    logprobs = (-3 * torch.rand(400, dtype=torch.float64)).requires_grad_()
    old = logprobs.detach() + 0.8 * torch.randn(400, dtype=torch.float64)
    old[:2] = logprobs.detach()[:2] + torch.tensor([30.0, -30.0])  # beyond the clamp of the log-ratio
    advantages = torch.randn(400, dtype=torch.float64)
    ref = logprobs.detach() + 0.5 * torch.randn(400, dtype=torch.float64)
    weights, entropy = torch.rand(400, dtype=torch.float64), torch.zeros(400, dtype=torch.float64)
    ref[:2] = logprobs.detach()[:2] + torch.tensor([30.0, -30.0])
    kl_coef, rollout = torch.rand(400, dtype=torch.float64), ref if name == "rollout_weights" else None
    weighted = advantages if rollout is None else advantages * rollout_weights(logprobs, rollout, surrogate.rollout_cap)
    terms = -policy_surrogate(logprobs, old, weighted, surrogate.kind, surrogate.clip_low, surrogate.clip_high, surrogate.dual_clip)
    terms = weights * (terms + kl_coef * divergence(logprobs, ref, surrogate.kl))
    (grad,) = torch.autograd.grad(terms.sum(), logprobs)
    tokens = policy_tokens(logprobs.detach(), entropy, PolicyInputs(advantages, weights, entropy, old, ref, kl_coef, rollout), surrogate)
    torch.testing.assert_close(tokens.loss, terms.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tokens.grad_logprobs, grad, rtol=1e-12, atol=1e-12)


def test_hand_computed_clip_flags():
    """ratio e^0.5 = 1.65 and e^-0.5 = 0.61 with bounds 0.8 and 1.2: clipped above for A > 0, below for A < 0, not otherwise."""
    logprobs = torch.tensor([-1.0, -1.0, -1.0, -1.0])
    old = torch.tensor([-1.5, -0.5, -1.5, -0.5])
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0])
    ones, zeros = torch.ones(4), torch.zeros(4)
    tokens = policy_tokens(logprobs, zeros, PolicyInputs(advantages, ones, zeros, old), OBJECTIVES["ppo"])
    assert tokens.clipped_high.tolist() == [True, False, False, False]
    assert tokens.clipped_low.tolist() == [False, True, False, False]
    torch.testing.assert_close(tokens.loss, torch.tensor([-1.2, 0.8, 1.6487213, -0.6065307]))
    torch.testing.assert_close(tokens.grad_logprobs, torch.tensor([0.0, 0.0, 1.6487213, -0.6065307]))
