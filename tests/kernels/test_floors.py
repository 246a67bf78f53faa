"""Sums over a kept set of logits: log-probs, entropy and their gradients with a floor, and the floors of top-p, top-k and min-p."""

from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck

from aer_kernels import KeptSet, fused_floors, fused_logprobs, fused_moments, fused_policy_loss, logprobs_from_logits, support_floors
from aer_kernels.statistics import RowStatistics, Tempering
from aer_kernels.testing import assert_within_budget, head_inputs
from tests.kernels.cases import FUSED, GRADS

N, V, D = 12, 517, 24
SCOPES = ("all", "entropy")
OPTIONS = {
    "plain": {},
    "tempered": {"temperature": 0.7, "softcap": 6.0},
    "per_token": {"temperature": torch.linspace(0.5, 1.5, N)},
    "blocks": {"memory_budget": 120_000},
}


def logits_of(x, *, temperature=1.0, softcap=None, memory_budget=None):
    raw = x.hidden @ x.weight.T + x.bias.to(x.hidden.dtype)
    raw = raw if softcap is None else softcap * torch.tanh(raw / softcap)
    return raw / (temperature.to(raw.dtype).unsqueeze(1) if isinstance(temperature, torch.Tensor) else temperature)


def eager(x, floor, scope, **options):
    """The definition on full logits, by masking: (logprobs, entropy, logsumexp)."""
    z = logits_of(x, **options)
    kept = z >= floor.to(z.dtype).unsqueeze(1)
    at = torch.arange(V) == x.targets.unsqueeze(1)
    whole = z if scope == "entropy" else z.masked_fill(~(kept | at), -torch.inf)
    logp = torch.log_softmax(whole, -1)
    q = torch.softmax(z.masked_fill(~(kept if scope == "entropy" else kept | at), -torch.inf), -1)
    entropy = -torch.where(q > 0, q * torch.where(q > 0, q, 1.0).log(), 0.0).sum(1)
    return logp.gather(1, x.targets.unsqueeze(1)).squeeze(1), entropy, torch.logsumexp(whole, -1)


def floors_of(x, **options):
    """From very few kept logits to nearly all; targets are below it in many rows."""
    ordered = logits_of(x.double(), **options).sort(1, descending=True).values
    places = torch.tensor([0, 1, 4, 30, 200, 500]).repeat(N)[:N]
    return (ordered.gather(1, places.unsqueeze(1)) - 1e-3).squeeze(1).float()


@pytest.mark.parametrize("impl", [*FUSED, "reference"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in OPTIONS), ("plain", torch.bfloat16)], ids=[*OPTIONS, "bfloat16"]
)
def test_values_and_gradients(name, scope, impl, dtype):
    options = OPTIONS[name]
    if impl == "reference" and "memory_budget" in options:
        pytest.skip("full logits have no budget")
    x = head_inputs(N, V, D, dtype=dtype, bias=True)
    floor = floors_of(x, **options)
    below = logits_of(x.double(), **options).gather(1, x.targets.unsqueeze(1)).squeeze(1) < floor
    assert 1 < below.sum() < N, "the case must have targets below the floor and above it"
    upstream = torch.randn(2, N, generator=torch.Generator().manual_seed(1))

    def run(inputs, statistics):
        leaves = inputs.requires_grad(*GRADS)
        found = statistics(leaves)
        total = (upstream[0] * found[0] + upstream[1] * found[1]).sum()
        return [*found, *torch.autograd.grad(total, [leaves.hidden, leaves.weight, leaves.bias])]

    truth = run(x.double(), lambda y: eager(y, floor, scope, **options))
    plain = run(x, lambda y: eager(y, floor, scope, **options))
    fused = run(
        x, lambda y: fused_logprobs(y.hidden, y.weight, y.targets, bias=y.bias, floor=floor, floor_scope=scope, impl=impl, **options)
    )
    for i, quantity in enumerate(("logprobs", "entropy", "logsumexp", "grad_hidden", "grad_weight", "grad_bias")):
        assert_within_budget(quantity, fused[i], truth[i], plain[i], ulps=16.0)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("options", [{}, {"memory_budget": 130_000}, {"select_rows": False}, {"batch_invariant": True}], ids=str)
def test_the_policy_loss(scope, impl, options):
    """Value and gradients are those of the loss on log-probs and entropies with the same floor."""
    x = head_inputs(N, V, D, bias=True)
    floor = floors_of(x)
    advantages, mask = torch.linspace(-1, 1, N), torch.arange(N) % 5 != 2
    tokens = {"advantages": advantages, "old_logprobs": None, "entropy_coef": 0.3, "loss_mask": mask, "normalizer": 11.0}
    leaves = x.requires_grad(*GRADS)
    expected = eager(leaves, floor, scope)
    loss = -torch.where(mask, advantages * (expected[0] - expected[0].detach()).exp() + 0.3 * expected[1], 0.0).sum() / 11.0
    gradients = torch.autograd.grad(loss, [leaves.hidden, leaves.weight, leaves.bias])
    leaves = x.requires_grad(*GRADS)
    out = fused_policy_loss(
        leaves.hidden, leaves.weight, x.targets, bias=leaves.bias, floor=floor, floor_scope=scope, impl=impl, **tokens, **options
    )
    torch.testing.assert_close(out.loss, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.logprobs, torch.where(mask, expected[0], 0.0).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.entropy, torch.where(mask, expected[1], 0.0).detach(), rtol=1e-4, atol=1e-5)
    for found, wanted in zip(torch.autograd.grad(out.loss, [leaves.hidden, leaves.weight, leaves.bias]), gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("impl", [*FUSED, "reference"])
@pytest.mark.parametrize("scope", SCOPES)
def test_given_logits(scope, impl):
    x = head_inputs(N, V, D, bias=True)
    floor, raw = floors_of(x), logits_of(x).requires_grad_()
    out = logprobs_from_logits(raw, x.targets, floor=floor, floor_scope=scope, impl=impl)
    (found,) = torch.autograd.grad((out.logprobs + 2 * out.entropy).sum(), raw)
    wanted = eager(x, floor, scope)
    for a, b in zip((out.logprobs, out.entropy, out.logsumexp), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    kept = (raw >= floor.unsqueeze(1)) | (torch.arange(V) == x.targets.unsqueeze(1))
    if scope == "all":
        assert not found[~kept].any(), "what is left out has no gradient"
    assert found.sum(1).abs().max() < 1e-5


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("scope", SCOPES)
def test_gradcheck(scope, impl):
    x = head_inputs(6, 11, 4, bias=True).double().requires_grad("hidden", "weight", "bias")
    z = (x.hidden @ x.weight.T + x.bias).sort(1, descending=True).values.detach()
    floor = (z[:, 3] + z[:, 4]) / 2

    def run(hidden, weight, bias):
        out = fused_logprobs(hidden, weight, x.targets, bias=bias, floor=floor, floor_scope=scope, impl=impl)
        return out.logprobs, out.entropy

    assert gradcheck(run, (x.hidden, x.weight, x.bias))


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_floor_of_minus_infinity_changes_nothing(scope, impl):
    x = head_inputs(N, V, D, bias=True)
    plain = fused_logprobs(x.hidden, x.weight, x.targets, bias=x.bias, impl=impl)
    found = fused_logprobs(x.hidden, x.weight, x.targets, bias=x.bias, floor=torch.full((N,), -torch.inf), floor_scope=scope, impl=impl)
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_statistics_of_shards_merge():
    """Two halves of the vocabulary, as ranks have them, give the statistics of the whole."""
    from aer_kernels import torch_rows

    x = head_inputs(N, V, D, bias=True)
    raw, floor = x.hidden @ x.weight.T, floors_of(x)
    for alone in (False, True):
        parts = []
        for columns in (slice(0, 300), slice(300, V), slice(0, V)):
            tempering = Tempering(x.bias, floor=floor, entropy_alone=alone)
            stats = RowStatistics.empty(N, torch.float32, raw.device, tempering.num_statistics)
            torch_rows.update_statistics(raw[:, columns].clone(), stats, x.targets, tempering, columns.start)
            parts.append(stats)
        merged = parts[0].merge(parts[1])
        for a, b in zip(merged.vectors(), parts[2].vectors(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_masked_and_empty_rows():
    x = head_inputs(4, 31, 8)
    floor = torch.tensor([0.0, torch.inf, torch.nan, 0.0])
    mask = torch.tensor([True, False, False, True])
    out = fused_logprobs(x.hidden, x.weight, x.targets, floor=floor, loss_mask=mask)
    assert out.logprobs[1:3].tolist() == [0.0, 0.0] and out.logprobs.isfinite().all()
    with pytest.raises(ValueError, match="floor must be below infinity, so that every row keeps a logit, got NaN or infinity"):
        fused_logprobs(x.hidden, x.weight, x.targets, floor=floor)
    high = torch.full((4,), 1e6)
    with pytest.raises(ValueError, match="floor must leave every row at least one logit, got one above all of a row"):
        fused_logprobs(x.hidden, x.weight, x.targets, floor=high, floor_scope="entropy")
    unchecked = fused_logprobs(x.hidden, x.weight, x.targets, floor=high, floor_scope="entropy", debug_checks=False)
    assert unchecked.entropy.isnan().all() and unchecked.logprobs.isfinite().all(), "loud, and only where the floor is"
    alone = fused_logprobs(x.hidden, x.weight, x.targets, floor=high)
    assert alone.logprobs.tolist() == [0.0] * 4 == alone.entropy.tolist(), "the target always counts"
    with pytest.raises(ValueError, match="floor_scope must be one of 'all', 'entropy', got 'half'"):
        fused_logprobs(x.hidden, x.weight, x.targets, floor=high, floor_scope="half")
    with pytest.raises(ValueError, match="floor must have a shape that broadcasts to targets"):
        fused_logprobs(x.hidden, x.weight, x.targets, floor=torch.zeros(3))


KINDS = {"top_p": (0.1, 0.5, 0.9, 0.999, 1.0), "top_k": (1, 2, 50, 517, 900), "min_p": (0.01, 0.3, 1.0)}


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["plain", "tempered", "per_token"])
def test_floors_are_those_of_sorting(name, kind, impl):
    count = 3 if impl == "triton" else N  # the interpreter bisects slowly
    options = {key: value[:count] if isinstance(value, torch.Tensor) else value for key, value in OPTIONS[name].items()}
    x = head_inputs(count, V, D, bias=True)
    x.bias[5] = -torch.inf
    z = logits_of(x.double(), **options)
    ordered, p = z.sort(1, descending=True).values, torch.softmax(z, 1).sort(1, descending=True).values
    for value in KINDS[kind]:
        floor = fused_floors(x.hidden, x.weight, bias=x.bias, impl=impl, **{kind: value}, **options)
        kept = (z >= floor.double().unsqueeze(1)).sum(1)
        if kind == "top_k":
            assert kept.tolist() == [min(value, V)] * count if value < V - 1 else (kept >= V - 1).all()
        elif kind == "min_p":
            assert torch.equal(kept, (p >= value * p[:, :1] * (1 - 1e-4)).sum(1))
        else:
            before = p.cumsum(1) - p
            assert torch.equal(kept, (before < value - 1e-7).sum(1)) or value == 1.0
        inside = kept < V - 1
        gap = ordered.gather(1, (kept - 1).unsqueeze(1)) - ordered.gather(1, kept.clamp(max=V - 1).unsqueeze(1))
        if kind != "min_p":
            margin = ordered.gather(1, (kept - 1).unsqueeze(1)).squeeze(1) - floor
            assert (margin[inside] >= 0.4 * gap.squeeze(1)[inside]).all(), "half way to the next"


@pytest.mark.parametrize("impl", FUSED)
def test_the_tokens_before_the_one_that_crosses(impl):
    """The most likely one stays even where it crosses by itself."""
    x = head_inputs(4, 60, D)
    x.hidden[0] *= 30  # one token has nearly all probability
    p = torch.softmax((x.hidden @ x.weight.T).double(), 1)
    for top_p in (0.2, 0.8, 0.99):
        floor = fused_floors(x.hidden, x.weight, top_p=top_p, crossing=False, impl=impl)
        kept = ((x.hidden @ x.weight.T) >= floor.unsqueeze(1)).sum(1)
        before = (p.sort(1, descending=True).values.cumsum(1) < top_p).sum(1)
        assert kept[0] == 1 and torch.equal(kept, before.clamp(min=1))
    tied = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    found = [KeptSet(top_p=top_p, crossing=False).floors_of_logits(tied).item() for top_p in (0.3, 0.6, 0.9, 0.99)]
    assert found == [1.5, 1.5, 1.5, 0.5], "equal logits go together: they cross .9"


def test_kept_sets_are_the_same_from_hidden_states_and_logits():
    x = head_inputs(5, 60, D)
    for kept in (KeptSet(top_p=0.7), KeptSet(top_p=0.7, crossing=False), KeptSet(top_share=0.31), KeptSet(top_share=1.0)):
        floor = kept.floors(x.hidden, x.weight, temperature=0.8)
        torch.testing.assert_close(kept.floors_of_logits(x.hidden @ x.weight.T, 0.8), floor)
        if kept.top_share is not None:
            assert ((x.hidden @ x.weight.T / 0.8) >= floor.unsqueeze(1)).sum(1).tolist() == [19 if kept.top_share < 1 else 60] * 5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "exactly one of top_p and top_share must be given, got None and None"),
        ({"top_p": 0.5, "top_share": 0.5}, "exactly one of top_p and top_share must be given, got 0.5 and 0.5"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_share": 2.0}, r"top_share must be in \(0, 1\], got 2.0"),
        ({"top_share": 0.5, "crossing": False}, "crossing must be True unless top_p is below 1, got False"),
        ({"top_p": 1.0, "crossing": False}, "crossing must be True unless top_p is below 1, got False"),
    ],
)
def test_kept_sets_that_make_no_sense(options, match):
    with pytest.raises(ValueError, match=match):
        KeptSet(**options)


@pytest.mark.parametrize("impl", FUSED)
def test_floors_of_some_tokens_and_equal_logits(impl):
    x = head_inputs(6, 40, 8)
    mask = torch.tensor([True, False, True, True, False, True])
    whole, some = (fused_floors(x.hidden, x.weight, top_p=0.7, loss_mask=m, impl=impl) for m in (None, mask))
    torch.testing.assert_close(some[mask], whole[mask])
    assert some[~mask].tolist() == [-torch.inf] * 2
    shaped = fused_floors(x.hidden.view(2, 3, 8), x.weight, top_k=3, impl=impl)
    assert shaped.shape == (2, 3)
    equal = fused_floors(torch.zeros(2, 8), x.weight, top_p=0.5, impl=impl)
    assert equal.tolist() == [-torch.inf] * 2, "equal logits stay together"
    assert fused_floors(x.hidden[:0], x.weight, top_p=0.5, impl=impl).shape == (0,)


def test_training_with_a_floor_is_the_truncated_distribution():
    """The log-prob of a token under top-p sampling, as a sampler would renormalise it."""
    count = 40
    x = head_inputs(count, V, D)
    floor = fused_floors(x.hidden, x.weight, top_p=0.8)
    out = fused_logprobs(x.hidden, x.weight, x.targets, floor=floor)
    p, order = torch.softmax((x.hidden @ x.weight.T).double(), 1).sort(1, descending=True)
    kept = p.cumsum(1) - p < 0.8
    nucleus = torch.zeros(count, V, dtype=torch.bool).scatter(1, order, kept)
    inside = nucleus.gather(1, x.targets.unsqueeze(1)).squeeze(1)
    expected = torch.softmax((x.hidden @ x.weight.T).double().masked_fill(~nucleus, -torch.inf), 1).gather(1, x.targets.unsqueeze(1)).log()
    torch.testing.assert_close(out.logprobs[inside].double(), expected.squeeze(1)[inside], rtol=1e-4, atol=1e-5)
    assert 0 < inside.sum() < count


def test_the_floor_of_a_recorded_support():
    x = head_inputs(N, V, D, bias=True)
    z = logits_of(x, temperature=0.7, softcap=6.0)
    order = z.argsort(1, descending=True)[:, :9].clone()
    order[0, 3:] = -1
    floor = support_floors(x.hidden, x.weight, order, bias=x.bias, temperature=0.7, softcap=6.0)
    kept = z >= floor.unsqueeze(1)
    assert kept.sum(1).tolist()[0] == 3 and (kept.sum(1)[1:] >= 9).all()
    assert (kept.gather(1, order.clamp(min=0)) | (order < 0)).all()
    with pytest.raises(ValueError, match="support must hold at least one token for each position"):
        support_floors(x.hidden, x.weight, torch.full((N, 2), -1))
    with pytest.raises(ValueError, match=r"support must have shape \(\*\(12,\), K\), got \(3, 2\)"):
        support_floors(x.hidden, x.weight, torch.zeros(3, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of top_p, top_k and min_p must be given, got none"),
        ({"top_p": 0.5, "top_k": 3}, "exactly one of top_p, top_k and min_p must be given, got top_p, top_k"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"min_p": 1.5}, r"min_p must be in \(0, 1\], got 1.5"),
        ({"top_k": 0}, "top_k must be >= 1, got 0"),
    ],
)
def test_options_are_checked(options, message):
    x = head_inputs(4, 9, 4)
    with pytest.raises(ValueError, match=message):
        fused_floors(x.hidden, x.weight, **options)


def test_inputs_may_be_in_low_precision():
    x = head_inputs(N, V, D, dtype=torch.bfloat16)
    wide = replace(x, hidden=x.hidden.float(), weight=x.weight.float())
    torch.testing.assert_close(fused_floors(x.hidden, x.weight, top_p=0.9), fused_floors(wide.hidden, wide.weight, top_p=0.9))


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("name", ["plain", "tempered", "per_token", "blocks"])
def test_moments(name, impl):
    """No worse than the same sums on full logits in fp32, both against float64."""
    x, options = head_inputs(N, V, D, bias=True), OPTIONS[name]
    x.bias[7] = -torch.inf
    mask = torch.arange(N) % 4 != 1

    def definition(inputs):
        z = logits_of(inputs, **options)
        p = torch.softmax(z, 1)
        logp = torch.log_softmax(z, 1).masked_fill(p == 0, 0.0)
        entropy = -(p * logp).sum(1)
        at = logp.gather(1, inputs.targets.unsqueeze(1)).squeeze(1)
        surprise = (p**2 * (logp + entropy.unsqueeze(1))).sum(1)
        return [torch.where(mask, y, 0.0) for y in (at, entropy, torch.logsumexp(z, 1), p.amax(1), (p**2).sum(1), surprise)]

    found = fused_moments(x.hidden, x.weight, x.targets, bias=x.bias, loss_mask=mask, impl=impl, **options)
    for quantity, got, truth, plain in zip(found._fields, found, definition(x.double()), definition(x), strict=True):
        assert_within_budget(quantity, got, truth, plain, ulps=16.0)
    mean = torch.softmax(logits_of(x.double(), **options), 1)
    logp = torch.log_softmax(logits_of(x.double(), **options), 1).masked_fill(mean == 0, 0.0)
    slopes = (mean * (mean * (logp + -(mean * logp).sum(1, keepdim=True)))).sum(1)
    torch.testing.assert_close(found.squares_surprise[mask].double(), slopes[mask], rtol=1e-4, atol=1e-6)
