"""What is promised beyond correctness: batch invariance, repeatability, kept logits, row tolerance, main_grad, low-rank heads, in-place logits."""

import pytest
import torch

from aer_kernels import FusedLMHead, fused_logprobs, fused_policy_loss, logprobs_from_logits, plan
from aer_kernels.testing import HeadInputs, assert_within_budget, head_inputs
from tests.kernels.cases import FUSED, check_logprobs, gradients

N, V, D = 37, 517, 24
UPSTREAM = (torch.linspace(-1, 1, N), torch.linspace(1, -1, N))
DTYPES = [torch.float32, torch.bfloat16]


def rows_of(x, rows):
    return HeadInputs(x.hidden[rows], x.weight, x.targets[rows], x.bias)


def score(x, rows=slice(None), **options):
    """Outputs and grad_hidden of some rows, each with its own upstream gradient."""
    run = lambda y: fused_logprobs(y.hidden, y.weight, y.targets, bias=y.bias, batch_invariant=True, **options)  # noqa: E731
    outputs, grads = gradients(run, rows_of(x, rows), tuple(g[rows] for g in UPSTREAM), ("hidden",))
    return [*outputs, *grads]


# --- batch invariance


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [[5], [36], [5, 6, 7], [36, 5, 0], list(range(20))], ids=["alone", "last", "few", "shuffled", "half"])
def test_a_row_does_not_depend_on_its_batch(rows, dtype, impl, monkeypatch):
    """Exact equality, in blocks of 8 rows: a row meets other neighbours, other places in its block and other numbers of blocks."""
    monkeypatch.setattr(plan, "INVARIANT_ROWS", {"cpu": 8, "gpu": 8})
    x = head_inputs(N, V, D, dtype=dtype, bias=True)
    whole, some = score(x, impl=impl), score(x, torch.tensor(rows), impl=impl)
    for got, want in zip(some, whole, strict=True):
        assert torch.equal(got, want[rows])


def test_masked_neighbours_do_not_matter_either():
    x = head_inputs(N, V, D, bias=True)
    mask = torch.arange(N) % 3 != 1
    whole, masked = score(x), score(x, loss_mask=mask)
    static = score(x, loss_mask=mask, select_rows=False)
    for want, got, also in zip(whole, masked, static, strict=True):
        assert torch.equal(got[mask], want[mask]) and torch.all(got[~mask] == 0)
        assert torch.equal(got, also)


@pytest.mark.parametrize("impl", FUSED)
def test_scoring_and_training_see_the_same_log_probs(impl):
    """So an on-policy ratio is exactly 1, whatever the two batches are."""
    x = head_inputs(N, V, D, bias=True)
    scored = fused_logprobs(x.hidden, x.weight, x.targets, bias=x.bias, batch_invariant=True, impl=impl).logprobs
    part = rows_of(x, slice(3, 30)).requires_grad("hidden", "weight")
    options = {"bias": x.bias, "advantages": torch.linspace(-1, 1, 27), "old_logprobs": scored[3:30], "batch_invariant": True, "impl": impl}
    out = fused_policy_loss(part.hidden, part.weight, part.targets, **options)
    assert torch.equal(out.logprobs, scored[3:30])
    assert out.metrics["ratio_max"] == out.metrics["ratio_mean"] == 1 and out.metrics["approx_kl"] == 0


@pytest.mark.parametrize("impl", FUSED)
def test_grad_hidden_of_the_policy_loss_does_not_depend_on_the_batch(impl, monkeypatch):
    monkeypatch.setattr(plan, "INVARIANT_ROWS", {"cpu": 8, "gpu": 8})
    x = head_inputs(N, V, D, bias=True)
    advantages = torch.linspace(-1, 1, N)

    def grad(rows):
        y = rows_of(x, rows).requires_grad("hidden", "weight")
        options = {"advantages": advantages[rows], "entropy_coef": 0.1, "normalizer": 100.0, "batch_invariant": True, "impl": impl}
        fused_policy_loss(y.hidden, y.weight, y.targets, bias=y.bias, **options).loss.backward()
        return y.hidden.grad

    whole = grad(torch.arange(N))
    for rows in ([7], [30, 2, 9], list(range(11, 29))):
        assert torch.equal(grad(torch.tensor(rows)), whole[rows])


@pytest.mark.parametrize("impl", FUSED)
def test_batch_invariant_results_are_right(impl, monkeypatch):
    monkeypatch.setattr(plan, "INVARIANT_ROWS", {"cpu": 16, "gpu": 16})
    check_logprobs(head_inputs(N, V, D, bias=True), impl, batch_invariant=True, temperature=0.7, softcap=20.0)


def test_large_products_are_batch_invariant_too():
    """At sizes where the BLAS library splits work over threads, with the real block height."""
    x = head_inputs(300, 5003, 256)
    rows = torch.tensor([250, 3, 77])
    run = lambda y: fused_logprobs(y.hidden, y.weight, y.targets, batch_invariant=True)  # noqa: E731
    whole, some = (gradients(run, y, (torch.ones(len(y.targets)),), ("hidden",)) for y in (x, rows_of(x, rows)))
    assert torch.equal(some[0][0], whole[0][0][rows]) and torch.equal(some[1][0], whole[1][0][rows])


@pytest.mark.slow
@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_repeated_call_has_the_same_bits(dtype, impl, monkeypatch):
    monkeypatch.setattr(plan, "CPU_BLOCK_BYTES", 20 << 10)
    x = head_inputs(40, V, D, dtype=dtype)
    options = {"advantages": torch.linspace(-1, 1, 40), "old_logprobs": -torch.linspace(0, 5, 40), "entropy_coef": 0.1, "impl": impl}

    def run():
        y = x.requires_grad("hidden", "weight")
        out = fused_policy_loss(y.hidden, y.weight, y.targets, **options)
        scored = fused_logprobs(y.hidden, y.weight, y.targets, impl=impl)
        (out.loss + (scored.logprobs * scored.entropy).mean()).backward()
        return out.loss.detach(), scored.entropy.detach(), y.hidden.grad, y.weight.grad

    first = run()
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


# --- kept logits


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spare", [0.4, 2.0], ids=["some_rows", "all_rows"])
def test_kept_logits_save_the_second_product(spare, dtype, impl, monkeypatch):
    """A budget with room keeps logits of the first rows: same gradients, and only the others are computed again."""
    from aer_kernels.blocked import gemm

    small = plan.plan_logprobs(N, V, D, dtype=dtype, device="cpu", scratch_copies=0 if impl == "triton" else None)
    budget = small.workspace_bytes + int(spare * N * V * 4) + 200_000
    made = plan.plan_logprobs(N, V, D, dtype=dtype, device="cpu", memory_budget=budget, scratch_copies=0 if impl == "triton" else None)
    assert 0 < made.cached_rows <= N
    heights, product = [], gemm.logits_
    monkeypatch.setattr(gemm, "logits_", lambda out, *a, **k: (heights.append(out.numel()), product(out, *a, **k))[1])
    x = head_inputs(N, V, D, dtype=dtype, bias=True)
    mask = torch.arange(N) % 5 != 3
    check_logprobs(x, impl, keep=mask, loss_mask=mask, memory_budget=budget)
    kept = min(made.cached_rows, int(mask.sum()))
    assert sum(heights) == (2 * int(mask.sum()) - kept) * V
    check_logprobs(x, impl, keep=mask, loss_mask=mask, memory_budget=budget, select_rows=False)


@pytest.mark.parametrize("impl", FUSED)
def test_kept_logits_with_few_live_rows(impl):
    """The rows that need a gradient are not the first ones, nor all of the kept ones; twice through a retained graph."""
    x = head_inputs(N, V, D)
    live = torch.zeros(N).index_fill(0, torch.tensor([2, 9, 30]), 1.5)
    y = x.requires_grad("hidden", "weight")
    out = fused_logprobs(y.hidden, y.weight, y.targets, impl=impl, memory_budget=400_000)
    total = (live * (out.logprobs + out.entropy)).sum()
    total.backward(retain_graph=True)
    first = y.hidden.grad.clone()
    total.backward()
    z = x.requires_grad("hidden", "weight")
    want = fused_logprobs(z.hidden, z.weight, z.targets, impl="reference")
    (live * (want.logprobs + want.entropy)).sum().backward()
    torch.testing.assert_close(first, z.hidden.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y.hidden.grad, 2 * first, rtol=0, atol=0)


# --- row tolerance


@pytest.mark.slow
@pytest.mark.parametrize("impl", FUSED)
def test_row_tolerance_bounds_what_it_drops(impl):
    """Dropped mass is reported, is at least the true L1 norm of the dropped d_logits, and grows with the tolerance."""
    x = head_inputs(160, V, D)
    advantages = torch.linspace(-1, 2, 160)
    run = lambda y, **kw: fused_policy_loss(y.hidden, y.weight, y.targets, advantages=advantages, entropy_coef=0.05, impl=impl, **kw)  # noqa: E731
    y = x.requires_grad("hidden", "weight")
    exact = run(y, row_tol=0.0)
    exact.loss.backward()
    assert exact.metrics["dropped_l1"] == 0
    z = x.requires_grad("hidden", "weight")
    filtered = run(z, row_tol=0.05)
    filtered.loss.backward()
    dropped = (z.hidden.grad == 0).all(1)
    assert 8 < dropped.sum() < 152
    logits = (x.hidden @ x.weight.T).double().requires_grad_()
    logp = torch.log_softmax(logits, -1)
    own = logp.gather(1, x.targets[:, None])[:, 0]
    loss = -(own - own.detach()).exp() * advantages + 0.05 * (logp.exp() * logp).sum(1)
    (true,) = torch.autograd.grad(loss.mean(), logits)
    mass = true[dropped].abs().sum()
    assert mass <= filtered.metrics["dropped_l1"] <= 3 * mass
    assert torch.equal(z.hidden.grad[~dropped], y.hidden.grad[~dropped]) or torch.allclose(z.hidden.grad[~dropped], y.hidden.grad[~dropped])
    difference = (z.weight.grad - y.weight.grad).abs().sum()
    assert difference <= filtered.metrics["dropped_l1"] * x.hidden.abs().sum(1).max()
    torch.testing.assert_close(filtered.loss, exact.loss)


def test_row_tolerance_is_off_by_default_where_reading_costs():
    """Its option combinations are checked; a tolerance needs varying shapes, which batch_invariant forbids."""
    x = head_inputs(4, 9, 4)
    with pytest.raises(ValueError, match=r"row_tol must be None with batch_invariant, got 0\.1"):
        fused_policy_loss(x.hidden, x.weight, x.targets, advantages=torch.ones(4), row_tol=0.1, batch_invariant=True)
    with pytest.raises(ValueError, match="row_tol must be >= 0, got -1"):
        fused_policy_loss(x.hidden, x.weight, x.targets, advantages=torch.ones(4), row_tol=-1)


# --- main_grad


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["logprobs", "policy"])
def test_main_grad_takes_the_gradient_of_the_weight(kind, dtype, impl):
    """Added in fp32 to what is there, over two micro-batches; weight.grad stays None, other gradients are as ever."""
    x = head_inputs(N, V, D, dtype=dtype, bias=True)

    def run(y, **options):
        if kind == "policy":
            return 0.7 * fused_policy_loss(y.hidden, y.weight, y.targets, bias=y.bias, advantages=UPSTREAM[0], impl=impl, **options).loss
        return (UPSTREAM[0] * fused_logprobs(y.hidden, y.weight, y.targets, bias=y.bias, impl=impl, **options).entropy).sum()

    plain = x.requires_grad("hidden", "weight", "bias")
    run(plain).backward()
    main_grad, leaves = torch.ones(V, D), x.requires_grad("hidden", "weight", "bias")
    for _ in range(2):
        run(leaves, main_grad=main_grad).backward()
    assert leaves.weight.grad is None
    torch.testing.assert_close(leaves.hidden.grad, 2 * plain.hidden.grad)
    found = (main_grad - 1) / 2
    if dtype == torch.float32:
        torch.testing.assert_close(found, plain.weight.grad, rtol=1e-4, atol=2e-7)
    else:  # the plain gradient is rounded to bf16
        assert (found - plain.weight.grad.float()).norm() < 4e-3 * found.norm()


@pytest.mark.parametrize(
    "error, message, main_grad",
    [
        (ValueError, r"main_grad must have the shape of weight \(9, 4\), got \(9, 3\)", torch.zeros(9, 3)),
        (TypeError, "main_grad must be float32 .* got torch.bfloat16", torch.zeros(9, 4, dtype=torch.bfloat16)),
    ],
)
def test_main_grad_is_checked(error, message, main_grad):
    x = head_inputs(4, 9, 4)
    with pytest.raises(error, match=message):
        fused_logprobs(x.hidden, x.weight, x.targets, main_grad=main_grad)


# --- low-rank heads


@pytest.mark.parametrize("impl", [*FUSED, "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen_head", "trained_head"])
def test_low_rank_update_of_the_head(frozen, dtype, impl):
    """Equal to a head whose weight is W + s B A; with W frozen its product is dropped and only A and B get gradients."""
    x = head_inputs(N, V, D, dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    a = (torch.randn(4, D, generator=generator) / 5).to(dtype)
    b = (torch.randn(V, 4, generator=generator) / 2).to(dtype)
    names = ["hidden", "a", "b"] if frozen else ["hidden", "a", "b", "weight"]
    given = {"hidden": x.hidden, "a": a, "b": b, "weight": x.weight}

    def found(cast, run):
        leaves = {k: v.to(cast or dtype).detach().clone().requires_grad_(k in names) for k, v in given.items()}
        outputs = run(leaves)
        total = sum((g.to(o.dtype) * o).sum() for g, o in zip(UPSTREAM, outputs, strict=True))
        return [*outputs, *torch.autograd.grad(total, [leaves[n] for n in names])]

    def merged(leaves):
        out = fused_logprobs(leaves["hidden"], leaves["weight"] + 2.0 * leaves["b"] @ leaves["a"], x.targets, impl="reference")
        return out.logprobs, out.entropy

    def eager(leaves):
        raw = leaves["hidden"] @ leaves["weight"].T + (leaves["hidden"] @ leaves["a"].T * 2.0) @ leaves["b"].T
        logp = torch.log_softmax(raw.float(), -1)
        return logp.gather(1, x.targets[:, None])[:, 0], -(logp.exp() * logp).sum(1)

    def fused(leaves):
        lora = {"lora_a": leaves["a"], "lora_b": leaves["b"], "lora_scale": 2.0}
        out = fused_logprobs(leaves["hidden"], leaves["weight"], x.targets, impl=impl, **lora)
        return out.logprobs, out.entropy

    truth, stick, got = found(torch.float64, merged), found(None, eager), found(None, fused)
    for name, g, t, s in zip(["logprobs", "entropy", *names], got, truth, stick, strict=True):
        assert_within_budget(name, g, t, s)


@pytest.mark.parametrize("impl", FUSED)
def test_low_rank_policy_loss(impl):
    x = head_inputs(N, V, D)
    a, b = torch.randn(4, D) / 5, torch.randn(V, 4) / 2
    losses = []
    for use in (impl, "reference"):
        leaves = [t.clone().requires_grad_() for t in (a, b)]
        out = fused_policy_loss(
            x.hidden, x.weight, x.targets, advantages=UPSTREAM[0], entropy_coef=0.1, lora_a=leaves[0], lora_b=leaves[1], impl=use
        )
        losses.append([out.loss, *torch.autograd.grad(out.loss, leaves)])
    for got, want in zip(*losses, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_low_rank_head_module():
    """The head is frozen, starts as it was (B = 0), and learns through A and B alone."""
    x = head_inputs(N, V, D)
    linear = torch.nn.Linear(D, V, bias=False)
    head = FusedLMHead.from_linear(linear).add_lora(rank=4, alpha=8.0)
    assert [n for n, p in head.named_parameters() if p.requires_grad] == ["lora_a", "lora_b"]
    assert torch.equal(head(x.hidden, x.targets).logprobs, fused_logprobs(x.hidden, linear.weight, x.targets).logprobs)
    head(x.hidden, x.targets, advantages=torch.ones(N)).loss.backward()
    assert head.weight.grad is None and head.lora_b.grad.abs().sum() > 0
    with torch.no_grad():
        head.lora_b.normal_()
    logits = head(x.hidden)
    torch.testing.assert_close(logits, x.hidden @ (linear.weight + 2.0 * head.lora_b @ head.lora_a).T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head(x.hidden, x.targets).entropy, logprobs_from_logits(logits, x.targets).entropy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "message, a, b",
    [
        ("lora_a and lora_b must be given together, got a tensor and None", torch.zeros(2, 4), None),
        (r"lora_a must have shape \(r, 4\) to match hidden \(5, 4\), got \(2, 3\)", torch.zeros(2, 3), torch.zeros(9, 2)),
        (r"lora_b must have shape \(9, 2\) to match weight and lora_a, got \(2, 9\)", torch.zeros(2, 4), torch.zeros(2, 9)),
    ],
)
def test_low_rank_shapes_are_checked(message, a, b):
    x = head_inputs(5, 9, 4)
    with pytest.raises(ValueError, match=message):
        fused_logprobs(x.hidden, x.weight, x.targets, lora_a=a, lora_b=b)


# --- in-place gradient of given logits


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_over_the_logits(dtype, impl):
    """Same bits as out of place, in the memory of the logits; a second backward pass is an error, not a wrong number."""
    x = head_inputs(N, V, D)
    mask = torch.arange(N) % 4 != 1
    values = (x.hidden @ x.weight.T).to(dtype)

    def run(**options):
        leaf = values.clone().requires_grad_()
        logits = leaf * 1.0
        out = logprobs_from_logits(logits, x.targets, loss_mask=mask, temperature=0.7, impl=impl, **options)
        total = (UPSTREAM[0] * out.logprobs + UPSTREAM[1] * out.entropy).sum()
        seen = []
        logits.register_hook(lambda g: seen.append(g.data_ptr()))
        total.backward(retain_graph=True)
        return leaf.grad, seen == [logits.data_ptr()], total

    plain, shared, _ = run()
    assert not shared
    inplace, shared, total = run(inplace_backward=True)
    assert shared and torch.equal(inplace, plain) and torch.all(inplace[~mask] == 0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
