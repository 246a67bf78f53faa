"""FusedLMHead and the sequence-level objective."""

import pytest
import torch
from torch import nn

from aer_kernels import FusedLMHead, fused_logprobs, fused_policy_loss
from aer_kernels.objectives.sequence import gspo_loss
from aer_kernels.testing import head_inputs


def test_one_module_three_forms():
    x = head_inputs(12, 40, 8)
    linear = nn.Linear(8, 40)
    head = FusedLMHead.from_linear(linear, softcap=5.0)
    assert head.weight is linear.weight and head.bias is linear.bias
    options = {"bias": linear.bias, "softcap": 5.0}
    assert torch.equal(head(x.hidden), 5.0 * torch.tanh(linear(x.hidden) / 5.0))
    assert torch.equal(head(x.hidden, x.targets).entropy, fused_logprobs(x.hidden, linear.weight, x.targets, **options).entropy)
    advantages = torch.randn(12)
    out = head(x.hidden, x.targets, advantages=advantages, entropy_coef=0.1)
    assert torch.equal(
        out.loss, fused_policy_loss(x.hidden, linear.weight, x.targets, advantages=advantages, entropy_coef=0.1, **options).loss
    )


def test_module_hooks_and_parameters_see_the_loss():
    head = FusedLMHead(8, 40)
    x = head_inputs(12, 40, 8)
    calls = []
    head.register_forward_pre_hook(lambda *_: calls.append("pre"))
    head(x.hidden, x.targets, advantages=torch.ones(12)).loss.backward()
    assert calls == ["pre"] and head.weight.grad is not None
    assert list(dict(head.named_parameters())) == ["weight"]


def test_tied_embedding_gets_both_gradients():
    embedding = nn.Embedding(40, 8)
    linear = nn.Linear(8, 40, bias=False)
    linear.weight = embedding.weight
    head = FusedLMHead.from_linear(linear)
    ids, targets = torch.tensor([1, 2]), torch.tensor([3, 4])
    head(embedding(ids), targets).logprobs.sum().backward()
    fused = embedding.weight.grad.clone()
    embedding.weight.grad = None
    (-nn.functional.cross_entropy(linear(embedding(ids)), targets, reduction="sum")).backward()
    torch.testing.assert_close(fused, embedding.weight.grad, rtol=1e-5, atol=1e-6)


def test_head_errors():
    head = FusedLMHead(8, 40)
    with pytest.raises(ValueError, match="targets must be given with advantages, temperature, got None"):
        head(torch.randn(2, 8), advantages=torch.ones(2), temperature=0.5)
    with pytest.raises(TypeError, match=r"linear must be an nn\.Linear, got Embedding"):
        FusedLMHead.from_linear(nn.Embedding(4, 8))


def test_gspo_by_hand():
    """Two responses with mean log-ratios 0.1 (clipped, A > 0) and -0.05 (A < 0, unclipped): -(1.05 * 2 - e^-0.05 * 1) / 2."""
    logprobs = torch.tensor([[-1.0, -1.0, -9.0], [-2.0, -2.0, -2.0]], requires_grad=True)
    old = torch.tensor([[-1.2, -1.0, 5.0], [-1.9, -2.0, -1.95]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    loss, metrics = gspo_loss(
        logprobs, advantages=torch.tensor([2.0, -1.0]), old_logprobs=old, loss_mask=mask, clip_low=0.1, clip_high=0.05
    )
    ratio = torch.tensor(-0.05).exp()
    torch.testing.assert_close(loss, -(1.05 * 2 - ratio) / 2)
    assert metrics["clip_frac"] == 0.5
    loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]) * ratio / 2 / 3)


def test_gspo_through_fused_logprobs():
    """On-policy: value -mean(A) and the gradient of -mean_i A_i mean_t logprobs, the same as the reference path gives."""
    x = head_inputs(12, 40, 8)
    grads = []
    for impl in ("torch", "reference"):
        hidden = x.hidden.view(3, 4, 8).clone().requires_grad_()
        logprobs = fused_logprobs(hidden, x.weight, x.targets.view(3, 4), impl=impl).logprobs
        loss, _ = gspo_loss(logprobs, advantages=torch.tensor([1.0, -1.0, 0.5]), loss_mask=torch.ones(3, 4))
        assert loss.item() == pytest.approx(-0.5 / 3)
        grads.append(torch.autograd.grad(loss, hidden)[0])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"advantages must have shape \(3,\) or \(3, 4\), got \(4,\)"):
        gspo_loss(logprobs, advantages=torch.ones(4), loss_mask=torch.ones(3, 4))


def test_gspo_with_an_advantage_for_each_token():
    """One for all tokens of a response is GSPO; others weigh each token's own gradient, with the ratio of the response."""
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(3, 5, generator=generator, dtype=torch.float64)
    old, mask = logprobs + 0.1 * torch.randn(3, 5, generator=generator), torch.rand(3, 5, generator=generator) < 0.7
    options = {"loss_mask": mask, "old_logprobs": old, "clip_low": 0.02, "clip_high": 0.02, "normalizer": 7.0}

    def gradient(advantages):
        leaf = logprobs.clone().requires_grad_()
        loss, metrics = gspo_loss(leaf, advantages=advantages, **options)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0], metrics

    whole = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for a, b in zip(gradient(whole)[:2], gradient(whole[:, None].expand(3, 5))[:2], strict=True):
        torch.testing.assert_close(a, b)
    ratio = (torch.where(mask, logprobs - old, 0.0).sum(1) / mask.sum(1)).exp()
    leaf = logprobs.clone().requires_grad_()
    plain = (torch.where(mask, leaf - old, 0.0).sum(1) / mask.sum(1)).exp()
    terms = torch.minimum(plain * whole, plain.clamp(0.98, 1.02) * whole)
    loss, found, metrics = gradient(whole)
    torch.testing.assert_close(loss, -terms.sum() / 7.0)
    torch.testing.assert_close(found, torch.autograd.grad(-terms.sum() / 7.0, leaf)[0])
    assert 0 < metrics["clip_frac"] < 1
    each = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    clipped = torch.where(each > 0, ratio[:, None] > 1.02, ratio[:, None] < 0.98)
    expected = -torch.where(mask & ~clipped, ratio[:, None] * each, 0.0) / mask.sum(1, keepdim=True) / 7.0
    torch.testing.assert_close(gradient(each)[1], expected)
