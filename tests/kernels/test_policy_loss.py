"""fused_policy_loss: named cases on the PyTorch and the interpreted Triton path, against float64 and eager autograd on full logits."""

import pytest
import torch

from aer_kernels import fused_logprobs, fused_policy_loss, plan
from aer_kernels.blocked import gemm
from aer_kernels.reference import divergence, policy_surrogate, rollout_weights
from aer_kernels.testing import assert_within_budget, head_inputs
from tests.kernels.cases import FUSED, GRADS, eager_logprobs

B, T, V, D = 5, 9, 517, 24
N = B * T


def make(dtype=torch.float32, **kw):
    """Inputs, and per-token tensors of a plausible off-policy step: two groups have zero advantage, one of those no bonus either."""
    x = head_inputs(N, V, D, dtype=dtype, bias=True, **kw)
    generator = torch.Generator().manual_seed(2)
    logprobs = eager_logprobs(x.double())[0].view(B, T)
    tokens = {
        "advantages": torch.tensor([1.3, -0.7, 0.0, 0.0, 0.4]).unsqueeze(1).expand(B, T),
        "old_logprobs": (logprobs + 0.3 * torch.randn(B, T, generator=generator)).float(),
        "ref_logprobs": (logprobs + 0.3 * torch.randn(B, T, generator=generator)).float(),
        "importance_weights": torch.rand(B, T, generator=generator) + 0.5,
        "rollout_logprobs": (logprobs + 0.2 * torch.randn(B, T, generator=torch.Generator().manual_seed(3))).float(),
        "entropy_coef": torch.tensor([0.0, 0.1, 0.2, 0.0, 0.05]).unsqueeze(1).expand(B, T).contiguous(),
        "loss_mask": torch.rand(B, T, generator=generator) < 0.8,
    }
    x = type(x)(x.hidden.view(B, T, D), x.weight, x.targets.view(B, T), x.bias)
    return x, tokens


KL_COEF = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.1]).unsqueeze(1).expand(B, T)
ON_POLICY = ("advantages", "entropy_coef", "loss_mask")
OFF_POLICY = (*ON_POLICY, "old_logprobs")
CASES = {
    "on_policy": (ON_POLICY, {}),
    "no_entropy": (("advantages", "old_logprobs"), {}),
    "fixed_coefficient": (("advantages", "loss_mask"), {"entropy_coef": 0.03}),
    "entropy_is_lowered": (
        ("advantages", "loss_mask"),
        {"entropy_coef": torch.tensor([-0.1, 0.1, -0.2, 0.0, -0.05]).unsqueeze(1).expand(B, T)},
    ),
    "ppo": (OFF_POLICY, {}),
    "clip_higher": (OFF_POLICY, {"clip_high": 0.28}),
    "dual_clip": (OFF_POLICY, {"dual_clip": 1.2}),
    "cispo": (OFF_POLICY, {"objective": "cispo", "clip_low": 1.0, "clip_high": 0.2}),
    "cispo_on_policy": (ON_POLICY, {"objective": "cispo"}),
    "kl": ((*OFF_POLICY, "ref_logprobs"), {"kl_coef": 0.4}),
    "kl_of_some_tokens": ((*OFF_POLICY, "ref_logprobs"), {"kl_coef": KL_COEF, "kl": "abs_k1"}),
    "signed_kl": ((*OFF_POLICY, "ref_logprobs"), {"kl_coef": KL_COEF, "kl": "k1"}),
    "squared_kl": (("advantages", "ref_logprobs"), {"kl_coef": 0.4, "kl": "k2"}),
    "rollout": ((*ON_POLICY, "rollout_logprobs"), {"rollout_cap": 1.1}),
    "rollout_off_policy": ((*OFF_POLICY, "rollout_logprobs"), {"rollout_cap": 1.1, "dual_clip": 1.5}),
    "rollout_cispo": ((*ON_POLICY, "rollout_logprobs"), {"objective": "cispo"}),
    "mismatch": ((*OFF_POLICY, "importance_weights"), {}),
    "sequence_mean": (OFF_POLICY, {"aggregation": "sequence_mean"}),
    "dr_grpo": (OFF_POLICY, {"aggregation": "constant", "normalizer": 100.0, "entropy_normalizer": 50.0}),
    "global_normalizer": (OFF_POLICY, {"normalizer": torch.tensor(123.0)}),
    "everything": (
        (*OFF_POLICY, "ref_logprobs", "importance_weights"),
        {
            "kl_coef": 0.1,
            "dual_clip": 2.0,
            "clip_high": 0.3,
            "aggregation": "sequence_mean",
            "temperature": 0.8,
            "softcap": 8.0,
            "normalizer": 7.0,
            "entropy_normalizer": torch.tensor(31.0),
        },
    ),
}


def definition(x, statistics, *, advantages, loss_mask=None, old_logprobs=None, ref_logprobs=None, importance_weights=None, entropy_coef=0.0,
               rollout_logprobs=None, rollout_cap=2.0, kl_coef=0.0, kl="k3", objective="ppo", clip_low=0.2, clip_high=0.2, dual_clip=None, aggregation="token_mean", normalizer=None,
               entropy_normalizer=None, temperature=1.0, softcap=None):  # fmt: skip
    """Equation (9) of the reference, written once more on (B, T) tensors with masks instead of row selection."""
    logprobs, entropy = (o.view(B, T) for o in statistics(x, temperature=temperature, softcap=softcap)[:2])
    mask = torch.ones(B, T, dtype=torch.bool) if loss_mask is None else loss_mask
    surrogate = policy_surrogate(logprobs, old_logprobs, advantages, objective, clip_low, clip_high, dual_clip)
    terms = -surrogate * (1.0 if importance_weights is None else importance_weights)
    if rollout_logprobs is not None:
        terms = terms * rollout_weights(logprobs if old_logprobs is None else old_logprobs, rollout_logprobs, rollout_cap)
    if ref_logprobs is not None:
        terms = terms + kl_coef * divergence(logprobs, ref_logprobs, kl)
    if aggregation == "sequence_mean":
        policy = ((terms * mask).sum(1) / mask.sum(1)).sum() / (B if normalizer is None else normalizer)
    else:
        policy = (terms * mask).sum() / (mask.sum() if normalizer is None else normalizer)
    tokens = normalizer if aggregation == "token_mean" and normalizer is not None else mask.sum()
    tokens = tokens if entropy_normalizer is None else entropy_normalizer
    return policy - (entropy_coef * entropy * mask).sum() / tokens


def flat(x):
    return type(x)(x.hidden.view(-1, D), x.weight, x.targets.view(-1), x.bias)


def loss_and_gradients(run, x, upstream=0.7):
    leaves = x.requires_grad(*GRADS)
    loss = run(leaves)
    return [loss, *torch.autograd.grad(upstream * loss, [leaves.hidden, leaves.weight, leaves.bias])]


def check(name, dtype, impl, **options):
    x, tokens = make(dtype)
    names, extra = CASES[name]
    options = {n: tokens[n] for n in names} | extra | options
    doubled = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in options.items()}
    doubled.pop("memory_budget", None)
    eager = {k: v for k, v in options.items() if k != "memory_budget"}
    found = {
        "truth": loss_and_gradients(lambda y: definition(flat(y), eager_logprobs, **doubled), x.double()),
        "eager": loss_and_gradients(lambda y: definition(flat(y), eager_logprobs, **eager), x),
        "fused": loss_and_gradients(lambda y: fused_policy_loss(y.hidden, y.weight, y.targets, bias=y.bias, impl=impl, **options).loss, x),
    }
    for i, quantity in enumerate(("loss", "grad_hidden", "grad_weight", "grad_bias")):
        assert_within_budget(quantity, found["fused"][i], found["truth"][i], found["eager"][i])
    if "loss_mask" in options:
        assert torch.all(found["fused"][1][~options["loss_mask"]] == 0)


@pytest.mark.parametrize("impl", [*FUSED, "reference"])
@pytest.mark.parametrize("name", CASES)
def test_against_float64(name, impl):
    check(name, torch.float32, impl)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["on_policy", "ppo", "everything"])
def test_low_precision(name, dtype, impl):
    check(name, dtype, impl)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_chunks(dtype, impl, monkeypatch):
    monkeypatch.setattr(plan, "CPU_BLOCK_BYTES", 40 << 10)
    assert plan.plan_policy_loss(N, V, D, dtype=dtype, device="cpu").num_row_blocks > 1
    check("everything", dtype, impl)
    check("ppo", dtype, impl)


@pytest.mark.parametrize("impl", FUSED)
def test_outputs_are_those_of_fused_logprobs(impl):
    x, tokens = make()
    out = fused_policy_loss(x.hidden, x.weight, x.targets, bias=x.bias, impl=impl, **{n: tokens[n] for n in OFF_POLICY})
    expected = fused_logprobs(x.hidden, x.weight, x.targets, bias=x.bias, loss_mask=tokens["loss_mask"], impl="reference")
    for got, want in ((out.logprobs, expected.logprobs), (out.entropy, expected.entropy)):
        assert got.shape == (B, T) and not got.requires_grad
        assert torch.all(got[~tokens["loss_mask"]] == 0)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("impl", [*FUSED, "reference"])
def test_metrics(impl):
    x, tokens = make()
    out = fused_policy_loss(
        x.hidden, x.weight, x.targets, bias=x.bias, impl=impl, kl_coef=0.0, ref_logprobs=tokens["ref_logprobs"], **{n: tokens[n] for n in OFF_POLICY}
    )  # fmt: skip
    mask = tokens["loss_mask"]
    ratio = (out.logprobs - tokens["old_logprobs"])[mask].exp()
    advantages = tokens["advantages"][mask]
    low, high = (ratio < 0.8) & (advantages < 0), (ratio > 1.2) & (advantages > 0)
    assert low.any() and high.any(), "the case must clip on both sides"
    grad = ((advantages != 0) & ~low & ~high) | (tokens["entropy_coef"][mask] != 0)
    distance = (tokens["ref_logprobs"] - out.logprobs)[mask]
    expected = {
        "num_tokens": mask.sum(), "num_grad_tokens": grad.sum(), "clip_frac_low": low.float().mean(), "clip_frac_high": high.float().mean(),
        "clip_frac_dual": torch.zeros(()), "clip_frac": (low | high).float().mean(), "ratio_mean": ratio.mean(), "ratio_max": ratio.max(),
        "approx_kl": (ratio - 1 - ratio.log()).mean(), "entropy": out.entropy[mask].mean(), "ref_kl": (distance.exp() - distance - 1).mean(), "dropped_l1": torch.zeros(()),
    }  # fmt: skip
    assert out.metrics.keys() == expected.keys()
    for name, want in expected.items():
        torch.testing.assert_close(out.metrics[name].double(), want.double(), rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("impl", FUSED)
def test_zero_gradient_rows_are_left_out_of_the_products(impl, monkeypatch):
    """Masked rows reach no product; zero-advantage rows without a bonus only the forward one; clipped ratios no gradient product."""
    x, tokens = make()
    heights = {"logits_": [], "grad_weight_": [], "add_grad_weight_": []}
    for name, rows_of in (
        ("logits_", lambda out, *_, **__: len(out)),
        ("grad_weight_", lambda out, d, hidden: len(d)),
        ("add_grad_weight_", lambda out, d, hidden: len(d)),
    ):
        call = getattr(gemm, name)
        monkeypatch.setattr(gemm, name, lambda *a, n=name, f=rows_of, c=call, **k: (heights[n].append(f(*a)), c(*a, **k))[1])
    monkeypatch.setattr(plan, "CPU_BLOCK_BYTES", 20 << 10)  # several chunks
    leaves = x.requires_grad("hidden", "weight")
    out = fused_policy_loss(leaves.hidden, leaves.weight, leaves.targets, bias=x.bias, impl=impl, **{n: tokens[n] for n in OFF_POLICY})
    assert sum(heights["logits_"]) == out.metrics["num_tokens"] < N
    assert len(heights["grad_weight_"]) == 1 and len(heights["add_grad_weight_"]) > 0, "the first chunk writes, the others add"
    assert sum(heights["grad_weight_"] + heights["add_grad_weight_"]) == out.metrics["num_grad_tokens"]
    never = (tokens["advantages"] == 0) & (tokens["entropy_coef"] == 0)
    assert 0 < out.metrics["num_grad_tokens"] < (tokens["loss_mask"] & ~never).sum()
    out.loss.backward()
    assert torch.all(leaves.hidden.grad[never] == 0)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("impl", FUSED)
def test_micro_batches_with_a_global_normalizer_add_up(impl, aggregation):
    x, tokens = make()
    total = tokens["loss_mask"].sum()
    options = {n: tokens[n] for n in OFF_POLICY} | {"aggregation": aggregation, "entropy_normalizer": total}
    options["normalizer"] = {"token_mean": total, "sequence_mean": 5.0, "constant": 100.0}[aggregation]
    run = lambda y: fused_policy_loss(y.hidden, y.weight, y.targets, bias=y.bias, impl=impl, **options).loss  # noqa: E731
    whole = loss_and_gradients(run, x, 1.0)

    def parts(y):
        pieces = [slice(0, 1), slice(1, 4), slice(4, 5)]
        return sum(
            fused_policy_loss(
                y.hidden[p],
                y.weight,
                y.targets[p],
                bias=y.bias,
                impl=impl,
                **{k: v[p] if k in OFF_POLICY else v for k, v in options.items()},
            ).loss
            for p in pieces
        )

    for got, want in zip(loss_and_gradients(parts, x, 1.0), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_packed_sequences_equal_rows():
    """sequence_ids on flat tokens mean the same as one sequence a row."""
    x, tokens = make()
    options = {n: tokens[n] for n in OFF_POLICY}
    rows = fused_policy_loss(x.hidden, x.weight, x.targets, aggregation="sequence_mean", **options).loss
    y = flat(x)
    ids = torch.arange(B).repeat_interleave(T)
    packed = fused_policy_loss(
        y.hidden, y.weight, y.targets, aggregation="sequence_mean", sequence_ids=ids, **{k: v.reshape(-1) for k, v in options.items()}
    ).loss  # fmt: skip
    assert torch.equal(rows, packed)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("names", [("hidden",), ("weight",), ("bias",), ("hidden", "bias")], ids="-".join)
def test_subsets_of_requires_grad(names, impl):
    x, tokens = make()
    options = {n: tokens[n] for n in OFF_POLICY}
    run = lambda y: fused_policy_loss(y.hidden, y.weight, y.targets, bias=y.bias, impl=impl, **options).loss  # noqa: E731
    everything = dict(zip(("hidden", "weight", "bias"), loss_and_gradients(run, x, 1.0)[1:], strict=True))
    leaves = x.requires_grad(*names)
    run(leaves).backward()
    for name in GRADS:
        got = getattr(leaves, name).grad
        assert torch.equal(got, everything[name]) if name in names else got is None


def test_without_gradients_no_gradient_is_formed(monkeypatch):
    x, tokens = make()
    leaves = x.requires_grad(*GRADS)
    monkeypatch.setattr(gemm, "add_grad_weight_", None)
    monkeypatch.setattr(gemm, "grad_weight_", None)
    monkeypatch.setattr(gemm, "grad_hidden", None)
    with torch.no_grad():
        out = fused_policy_loss(leaves.hidden, leaves.weight, leaves.targets, advantages=tokens["advantages"])
    assert not out.loss.requires_grad


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_held_gradients_are_handed_out_or_copied(dtype, impl):
    """The last backward pass may get the held memory itself; passes through a retained graph get copies, so that none sees another's sums."""
    x = head_inputs(30, V, D, dtype=dtype)
    leaves = x.requires_grad("hidden", "weight")
    options = {"advantages": torch.linspace(-1, 1, 30), "entropy_coef": 0.1, "impl": impl}
    run = lambda: fused_policy_loss(leaves.hidden, leaves.weight, leaves.targets, **options).loss  # noqa: E731
    want = torch.autograd.grad(run(), [leaves.hidden, leaves.weight])
    loss = run()
    for factor in (1.0, 0.25, 1.0):
        got = torch.autograd.grad(factor * loss, [leaves.hidden, leaves.weight], retain_graph=True)
        for g, w in zip(got, want, strict=True):
            assert torch.equal(g, factor * w)
            g.fill_(torch.nan)
    for g, w in zip(torch.autograd.grad(loss, [leaves.hidden, leaves.weight]), want, strict=True):
        assert torch.equal(g, w)


def test_second_backward_through_a_retained_graph():
    x, tokens = make()
    leaves = x.requires_grad("hidden", "weight")
    loss = fused_policy_loss(leaves.hidden, leaves.weight, leaves.targets, advantages=tokens["advantages"], entropy_coef=0.1).loss
    loss.backward(retain_graph=True)
    once = leaves.weight.grad.clone()
    (2 * loss).backward()
    torch.testing.assert_close(leaves.weight.grad, 3 * once)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("impl", [*FUSED, "reference"])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_nothing_to_train_on(aggregation, impl):
    x, tokens = make()
    for mask, shape in ((torch.zeros(B, T, dtype=torch.bool), (B, T)), (torch.zeros(0, T, dtype=torch.bool), (0, T))):
        rows = shape[0]
        leaves = type(x)(x.hidden[:rows], x.weight, x.targets[:rows]).requires_grad("hidden", "weight")
        out = fused_policy_loss(
            leaves.hidden, leaves.weight, leaves.targets, advantages=tokens["advantages"][:rows], loss_mask=mask, aggregation=aggregation, impl=impl
        )  # fmt: skip
        assert out.loss == 0
        assert all(torch.isfinite(m) for m in out.metrics.values())
        out.loss.backward()
        assert torch.all(leaves.weight.grad == 0) and leaves.hidden.grad.shape == leaves.hidden.shape


def test_fp16_gradients_do_not_underflow():
    """A global normalizer of 1e6 tokens would push p * coefficient below fp16's smallest number, were it applied before the products."""
    x, tokens = make(torch.float16)
    options = {"advantages": tokens["advantages"], "normalizer": 1e6}
    scale = 2.0**16  # what a gradient scaler does
    leaves = x.requires_grad("hidden", "weight")
    (scale * fused_policy_loss(leaves.hidden, leaves.weight, leaves.targets, **options).loss).backward()
    truth = x.double().requires_grad("hidden", "weight")
    doubled = {"advantages": tokens["advantages"].double(), "normalizer": 1e6}
    (scale * fused_policy_loss(truth.hidden, truth.weight, truth.targets, impl="reference", **doubled).loss).backward()
    relative = (leaves.weight.grad.double() - truth.weight.grad).norm() / truth.weight.grad.norm()
    assert relative < 2e-3


@pytest.mark.parametrize("impl", [*FUSED, "reference"])
@pytest.mark.parametrize("name", ["advantages", "entropy_coef", "importance_weights"])
def test_nan_shows_in_the_gradient(name, impl):
    """A loop may look at the norm of the gradient alone."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    given = {"advantages": torch.randn(6), "entropy_coef": torch.rand(6), "importance_weights": torch.rand(6)}
    given[name][2] = torch.nan
    out = fused_policy_loss(hidden, weight, torch.arange(6), impl=impl, **given)
    out.loss.backward()
    assert out.loss.isnan() and hidden.grad[2].isnan().any() and weight.grad.isnan().any()
    assert hidden.grad[[0, 1, 3, 4, 5]].isfinite().all()
