"""Mistakes found by reading other fused heads, each as a test that this library passes. Where a peer's mistake is known, its issue is named."""

import pytest
import torch

from aer_kernels import fused_logprobs, fused_policy_loss
from aer_kernels.testing import HeadInputs, head_inputs
from tests.kernels.cases import FUSED, check_logprobs, eager_logprobs, gradients

N, V, D = 37, 517, 24


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("centre", [-90.0, -120.0, -500.0])
def test_all_logits_strongly_negative(centre, impl):
    """A running maximum that starts at 0 underflows every exp below about -103: log 0. (verl's kernel; NovaSky-AI/SkyRL#2141.)"""
    x = head_inputs(N, V, D)
    x = HeadInputs(x.hidden, x.weight, x.targets, torch.full((V,), centre))
    out, grads = gradients(
        lambda y: fused_logprobs(y.hidden, y.weight, y.targets, bias=y.bias, impl=impl), x, (torch.ones(N), torch.ones(N))
    )
    assert all(torch.isfinite(t).all() for t in (*out, *grads))
    check_logprobs(x, impl)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("vocab_size", [513, 1000, 8191, 8193])
def test_vocabularies_that_are_no_multiple_of_a_tile(vocab_size, impl):
    """Columns beyond the vocabulary must not enter the sum: log-probs above 0 gave them away. (verl-project/verl#2656, #2899.)"""
    x = head_inputs(9, vocab_size, 40)
    x = HeadInputs(x.hidden, x.weight, x.targets, torch.full((vocab_size,), -60.0))  # a zero-filled tail would win
    check_logprobs(x, impl)
    assert torch.all(fused_logprobs(x.hidden, x.weight, x.targets, bias=x.bias, impl=impl).logprobs <= 0)


@pytest.mark.parametrize("impl", FUSED)
def test_ignored_labels_are_zero_and_never_unwritten_memory(impl):
    """Label -100 belongs to no tile of the vocabulary, so nothing wrote its output. Memory is poisoned with NaN in these tests."""
    x = head_inputs(N, V, D)
    x.targets[::3] = -100
    keep = x.targets != -100
    check_logprobs(x, impl, keep=keep)
    out = fused_logprobs(x.hidden, x.weight, x.targets, impl=impl)
    assert all(torch.all(t[~keep] == 0) for t in out)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("hidden_size", [1, 7, 100, 129])
def test_any_hidden_size(hidden_size, impl):
    """No multiple of 128 is asked for."""
    check_logprobs(head_inputs(11, 300, hidden_size), impl)


@pytest.mark.parametrize("impl", FUSED)
def test_gradients_of_a_plain_sum(impl):
    """sum().backward() sends gradients of stride 0, where peers assert contiguity."""
    ones = torch.ones(()).expand(N)
    check_logprobs(head_inputs(N, V, D), impl, upstream=(ones, ones))


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("scale", [25.0, 120.0])
def test_logits_are_not_held_in_16_bits(scale, impl):
    """bf16 inputs have exact fp32 products. Peers that stage logits in fp16 or bf16 lose 2e-3 to 1e-1 nats at these magnitudes."""
    x = head_inputs(64, V, 64, dtype=torch.bfloat16, peak=0.0)
    x = HeadInputs(x.hidden * (scale / 4), x.weight, x.targets)  # logits up to about +-scale
    exact = eager_logprobs(x.double())
    out = fused_logprobs(x.hidden, x.weight, x.targets, impl=impl)
    assert out.logprobs.dtype == out.entropy.dtype == torch.float32
    rounding = scale * 2.0**-23
    assert (out.logprobs - exact[0]).abs().max() < 16 * rounding
    assert (out.entropy - exact[1]).abs().max() < 16 * rounding


@pytest.mark.slow
@pytest.mark.parametrize("impl", FUSED)
def test_grad_weight_does_not_get_worse_with_the_number_of_chunks(impl, monkeypatch):
    """A bf16 sum over chunks loses a rounding a chunk (1.7e-3 at one chunk, 8.9e-3 at 64); fp32 and one rounding at the end does not."""
    from aer_kernels import plan

    x = head_inputs(160, 300, 32, dtype=torch.bfloat16)
    advantages = torch.linspace(-1, 2, 160)
    options = {"advantages": advantages, "entropy_coef": 0.02, "normalizer": 1.0}

    def grad(inputs, **kw):
        y = inputs.requires_grad("weight")
        fused_policy_loss(y.hidden, y.weight, y.targets, **options, **kw).loss.backward()
        return y.weight.grad.double()

    truth = grad(x.double(), impl="reference")
    error = lambda found: float((found - truth).norm() / truth.norm())  # noqa: E731
    one_rounding = error(truth.bfloat16().double())
    for block in (64 << 20, 20 << 10):
        monkeypatch.setattr(plan, "CPU_BLOCK_BYTES", block)
        chunks = plan.plan_policy_loss(160, 300, 32, device="cpu").num_row_blocks
        assert (chunks > 8) == (block < 1 << 20)
        assert error(grad(x, impl=impl)) < 1.1 * one_rounding


@pytest.mark.parametrize("impl", FUSED)
def test_entropy_has_a_gradient(impl):
    """Chunked log-prob functions that return an entropy and silently drop its gradient (TRL, prime-rl by an assertion)."""
    x = head_inputs(N, V, D).requires_grad("hidden", "weight")
    out = fused_logprobs(x.hidden, x.weight, x.targets, impl=impl)
    grads = torch.autograd.grad(out.entropy.sum(), [x.hidden, x.weight])
    assert all(g.abs().sum() > 0 for g in grads)
    check_logprobs(head_inputs(N, V, D), impl, upstream=(None, torch.linspace(-1, 1, N)))


@pytest.mark.parametrize("impl", FUSED)
def test_per_token_upstream_gradients_are_not_averaged(impl):
    """Gradients formed in the forward pass and scaled afterwards are wrong as soon as tokens have different upstream gradients."""
    upstream = torch.zeros(N)
    upstream[3], upstream[17] = 5.0, -2.0
    check_logprobs(head_inputs(N, V, D), impl, upstream=(upstream, None))
    x = head_inputs(N, V, D)
    weights = torch.linspace(0, 1, N)
    found = []
    for use in (impl, "reference"):
        y = x.requires_grad("hidden", "weight")
        fused_policy_loss(y.hidden, y.weight, y.targets, advantages=torch.ones(N), importance_weights=weights, impl=use).loss.backward()
        found.append((y.hidden.grad, y.weight.grad))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("impl", FUSED)
def test_more_rows_than_a_grid_dimension(impl):
    """Launches with rows on grid.y end at 65,535. (linkedin/Liger-Kernel#1294.) The compile lane launches 131,072 rows."""
    rows = 66_000 if impl == "torch" else 300  # the interpreter walks over programs one by one
    x = head_inputs(rows, 11, 4)
    out = fused_logprobs(x.hidden, x.weight, x.targets, impl=impl)
    torch.testing.assert_close(out.logprobs[-50:], eager_logprobs(x)[0][-50:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", FUSED)
def test_nearly_certain_tokens_have_a_gradient(impl):
    """p_y -> 1: 1 - p_y cancels in fp32, and a filter on small probabilities voids it. expm1 of the saved logit keeps it."""
    x = head_inputs(N, V, D)
    onehot = torch.nn.functional.one_hot(x.targets, V).float() * 15
    x = HeadInputs(onehot, torch.eye(V), x.targets)
    leaves = x.requires_grad("hidden")
    fused_logprobs(leaves.hidden, leaves.weight, leaves.targets, impl=impl).logprobs.sum().backward()
    truth = x.double().requires_grad("hidden")
    fused_logprobs(truth.hidden, truth.weight, truth.targets, impl="reference").logprobs.sum().backward()
    at_target = leaves.hidden.grad.gather(1, x.targets[:, None]), truth.hidden.grad.gather(1, x.targets[:, None])
    assert torch.all(at_target[0] > 0)
    torch.testing.assert_close(at_target[0].double(), at_target[1], rtol=2e-2, atol=0)
