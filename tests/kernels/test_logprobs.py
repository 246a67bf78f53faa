"""fused_logprobs and logprobs_from_logits: named cases on the PyTorch and the interpreted Triton path, against float64 and eager."""

import math

import pytest
import torch

from aer_kernels import fused_logprobs, logprobs_from_logits, plan
from aer_kernels.testing import assert_within_budget, head_inputs
from tests.kernels.cases import FUSED, check_logprobs, gradients

N, V, D = 37, 517, 24  # none a multiple of anything that a kernel likes
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def ids(dtype):
    return str(dtype).removeprefix("torch.")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks far smaller than the problem, so that several row and vocabulary blocks are merged."""
    monkeypatch.setattr(plan, "CPU_BLOCK_BYTES", 16 << 10)


CASES = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "temperature_per_token": {"temperature": torch.linspace(0.5, 2.0, N)},
    "softcap": {"softcap": 4.0},  # bends most logits
    "softcap_and_temperature": {"softcap": 30.0, "temperature": 1.7},
}


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("name", CASES)
def test_against_float64(name, dtype, impl):
    check_logprobs(head_inputs(N, V, D, dtype=dtype, bias=True), impl, **CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=ids)
def test_many_blocks(small_blocks, dtype, impl):
    made = plan.plan_logprobs(40, 1500, D, dtype=dtype, device="cpu")
    assert 2 * made.row_block < 40 and made.vocab_block < 1500
    check_logprobs(head_inputs(40, 1500, D, dtype=dtype, bias=True), impl, temperature=0.9)


@pytest.mark.parametrize("impl", FUSED)
def test_untrained_head(impl):
    """Entropy near log V, where lse - sum(p z) would cancel."""
    check_logprobs(head_inputs(N, V, D, peak=0.0), impl)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("shift", [-200.0, 200.0])
def test_shifted_logits(shift, impl):
    """A running maximum that starts at 0, or exp without recentring, dies here."""
    x = head_inputs(N, V, D)
    x = type(x)(x.hidden, x.weight, x.targets, torch.full((V,), shift))
    check_logprobs(x, impl)
    plain = fused_logprobs(x.hidden, x.weight, x.targets, impl=impl)
    moved = fused_logprobs(x.hidden, x.weight, x.targets, bias=x.bias, impl=impl)
    torch.testing.assert_close(moved.logprobs, plain.logprobs, rtol=0, atol=2e-4)  # the rounding of logits at 200
    torch.testing.assert_close(moved.entropy, plain.entropy, rtol=0, atol=2e-4)


@pytest.mark.parametrize("impl", FUSED)
def test_one_hot_rows(impl):
    """The target is certain: log-prob and entropy are 0 to rounding and never of the wrong sign, gradients vanish."""
    x = head_inputs(N, V, D)
    onehot = torch.nn.functional.one_hot(x.targets, V).float() * 60
    x = type(x)(onehot, torch.eye(V), x.targets)
    out, grads = gradients(lambda y: fused_logprobs(y.hidden, y.weight, y.targets, impl=impl), x, (torch.ones(N), torch.ones(N)))
    assert torch.all(out[0] <= 0) and torch.all(out[0] > -1e-6)
    assert torch.all(out[1] >= 0) and torch.all(out[1] < 1e-6)
    assert all(g.abs().max() < 1e-6 for g in grads)
    check_logprobs(type(x)(onehot / 5, torch.eye(V), x.targets), impl)  # 12 nats ahead: certain, and still resolved by float64


@pytest.mark.parametrize("impl", FUSED)
def test_uniform_rows(impl):
    x = head_inputs(N, V, D)
    out = fused_logprobs(torch.zeros_like(x.hidden), x.weight, x.targets, impl=impl)
    torch.testing.assert_close(out.logprobs, torch.full((N,), -math.log(V)), rtol=2e-7, atol=0)
    torch.testing.assert_close(out.entropy, torch.full((N,), math.log(V)), rtol=2e-7, atol=0)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("pad", [1, 300], ids=["one_column", "a_whole_block"])
def test_padded_vocabulary(small_blocks, pad, impl):
    """-inf at the end of the vocabulary changes nothing: 0 * -inf must not appear, in either direction."""
    x = head_inputs(N, V, D, bias=True)
    bias = torch.cat([x.bias, torch.full((pad,), -torch.inf)])
    padded = type(x)(x.hidden, torch.cat([x.weight, torch.randn(pad, D)]), x.targets, bias)
    check_logprobs(padded, impl)
    check_logprobs(padded, impl, softcap=5.0)
    ours = fused_logprobs(padded.hidden, padded.weight, padded.targets, bias=padded.bias, impl=impl)
    plain = fused_logprobs(x.hidden, x.weight, x.targets, bias=x.bias, impl=impl)
    torch.testing.assert_close(ours.entropy, plain.entropy, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", FUSED)
def test_leading_block_of_minus_infinity(small_blocks, impl):
    """The first blocks of a row hold nothing but -inf, so the running maximum stays -inf for a while."""
    x = head_inputs(N, 1500, D, bias=True)
    x.bias[:1200] = -torch.inf
    x.targets.remainder_(300).add_(1200)
    check_logprobs(x, impl)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("by", ["mask", "ignore_index", "both"])
def test_ignored_rows(by, impl):
    """NaN hidden states in ignored rows reach nothing."""
    x = head_inputs(N, V, D, bias=True)
    masked, ignored = torch.arange(N) % 3 == 0, torch.arange(N) % 5 == 1
    keep = torch.ones(N, dtype=torch.bool)
    options = {}
    if by != "ignore_index":
        keep &= ~masked
        options["loss_mask"] = ~masked
    if by != "mask":
        keep &= ~ignored
        x.targets[ignored] = -100
    check_logprobs(x, impl, keep=keep, **options)
    x.hidden[~keep] = torch.nan
    out, grads = gradients(
        lambda y: fused_logprobs(y.hidden, y.weight, y.targets, bias=y.bias, impl=impl, **options), x, (torch.ones(N), torch.ones(N))
    )
    assert all(torch.isfinite(o).all() for o in out)
    assert all(torch.isfinite(g).all() for g in grads)


UPSTREAM = {
    "expanded": (torch.ones(()).expand(N), torch.full((), 0.3).expand(N)),  # stride 0, as sum().backward() sends
    "entropy_only": (None, torch.linspace(-1, 1, N)),
    "logprobs_only": (torch.linspace(-1, 1, N), None),
    "half_zero": (torch.linspace(-1, 1, N) * (torch.arange(N) % 2), torch.linspace(1, -1, N) * (torch.arange(N) % 2)),
}


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("name", UPSTREAM)
def test_upstream_gradients(name, impl):
    check_logprobs(head_inputs(N, V, D, bias=True), impl, upstream=UPSTREAM[name])


@pytest.mark.parametrize("impl", FUSED)
def test_rows_without_upstream_gradient_are_left_out(impl, monkeypatch):
    """Two live rows of 37: the backward products see two rows, and the gradients are those of the full computation."""
    from aer_kernels.blocked import gemm

    x = head_inputs(N, V, D)
    upstream = torch.zeros(N).index_fill(0, torch.tensor([3, 30]), 2.0)
    heights = []
    product = gemm.grad_weight_
    monkeypatch.setattr(gemm, "grad_weight_", lambda out, d, hidden: (heights.append(len(d)), product(out, d, hidden))[1])
    run = lambda y: fused_logprobs(y.hidden, y.weight, y.targets, impl=impl)  # noqa: E731
    sparse = gradients(run, x, (upstream, upstream))[1]
    assert heights == [2]
    dense = gradients(lambda y: fused_logprobs(y.hidden, y.weight, y.targets, impl="reference"), x, (upstream, upstream))[1]
    for got, want in zip(sparse, dense, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
        assert torch.equal(got == 0, want == 0)


@pytest.mark.parametrize("impl", FUSED)
def test_expanded_gradient_through_sum(impl):
    x = head_inputs(N, V, D).requires_grad("hidden")
    fused_logprobs(x.hidden, x.weight, x.targets, impl=impl).entropy.sum().backward()
    y = head_inputs(N, V, D).requires_grad("hidden")
    fused_logprobs(y.hidden, y.weight, y.targets, impl="reference").entropy.sum().backward()
    torch.testing.assert_close(x.hidden.grad, y.hidden.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize(
    "names", [("hidden",), ("weight",), ("bias",), ("hidden", "weight"), ("hidden", "bias"), ("weight", "bias")], ids="-".join
)
def test_subsets_of_requires_grad(names, impl):
    """Each gradient alone equals the one formed with all others, and what needs none gets none."""
    x = head_inputs(N, V, D, bias=True)
    upstream = (torch.linspace(-1, 1, N), torch.linspace(1, -1, N))
    run = lambda y: fused_logprobs(y.hidden, y.weight, y.targets, bias=y.bias, impl=impl)  # noqa: E731
    everything = dict(zip(("hidden", "weight", "bias"), gradients(run, x, upstream)[1], strict=True))
    some = dict(zip(names, gradients(run, x, upstream, names)[1], strict=True))
    for name in names:
        assert torch.equal(some[name], everything[name])


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("shape", [(0,), (1,), (2, 0), (3, 5)], ids=str)
def test_leading_shapes(shape, impl):
    num = math.prod(shape)
    x = head_inputs(max(num, 1), V, D)
    hidden = x.hidden[:num].view(*shape, D).clone().requires_grad_()
    weight = x.weight.clone().requires_grad_()
    out = fused_logprobs(hidden, weight, x.targets[:num].view(shape), impl=impl)
    assert out.logprobs.shape == out.entropy.shape == out.logsumexp.shape == shape
    (out.logprobs.sum() + out.entropy.sum()).backward()
    assert hidden.grad.shape == hidden.shape and torch.isfinite(weight.grad).all()
    assert num or torch.all(weight.grad == 0)


@pytest.mark.parametrize("impl", FUSED)
def test_strided_inputs(impl):
    """Transposed weights and a slice of a longer sequence: no hidden copy is assumed."""
    x = head_inputs(N, V, D)
    reference = fused_logprobs(x.hidden, x.weight, x.targets, impl="reference")
    wide = torch.cat([x.hidden, torch.full((N, 3), torch.nan)], 1)[:, :D]
    out = fused_logprobs(wide, x.weight.T.contiguous().T, x.targets, impl=impl)
    torch.testing.assert_close(out.logprobs, reference.logprobs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", FUSED)
def test_every_input_may_be_strided(impl):
    """Kernels read flat memory: strided targets, bias, temperature and upstream gradients, transposed logits."""
    x = head_inputs(N, V, D, bias=True)
    every_other = lambda t: torch.stack([t, torch.full_like(t, 3)], -1).flatten()[::2]  # noqa: E731
    temperature, upstream = torch.linspace(0.5, 2.0, N), (torch.linspace(-1, 1, N), torch.linspace(1, 2, N))
    plain = {"bias": x.bias, "temperature": temperature}
    strided = {"bias": every_other(x.bias), "temperature": every_other(temperature)}
    want = gradients(lambda y: fused_logprobs(y.hidden, y.weight, x.targets, impl=impl, **plain), x, upstream, ("hidden",))
    got = gradients(
        lambda y: fused_logprobs(y.hidden, y.weight, every_other(x.targets), impl=impl, **strided),
        x,
        tuple(map(every_other, upstream)),
        ("hidden",),
    )
    assert all(torch.equal(a, b) for a, b in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True))

    columns = (x.hidden @ x.weight.T).T.contiguous().requires_grad_()
    out = logprobs_from_logits(columns.T, x.targets, impl=impl)
    expected = logprobs_from_logits(columns.T.detach().contiguous(), x.targets, impl="reference")
    torch.testing.assert_close(out.logprobs, expected.logprobs, rtol=1e-5, atol=1e-5)
    out.entropy.sum().backward()
    assert columns.grad.shape == columns.shape and torch.isfinite(columns.grad).all()


def test_all_outputs_are_zero_without_tokens():
    x = head_inputs(N, V, D).requires_grad("hidden", "weight")
    out = fused_logprobs(x.hidden, x.weight, torch.full((N,), -100))
    (out.logprobs.sum() + out.entropy.sum()).backward()
    assert torch.all(out.logprobs == 0) and torch.all(x.hidden.grad == 0) and torch.all(x.weight.grad == 0)


def test_target_outside_the_vocabulary_is_never_garbage():
    x = head_inputs(4, V, D)
    x.targets[1] = V
    with pytest.raises(ValueError, match=rf"targets must be in \[0, {V}\) or ignore_index, got {V}"):
        fused_logprobs(x.hidden, x.weight, x.targets)
    for impl in ("torch", "triton"):
        out = fused_logprobs(x.hidden, x.weight, x.targets, impl=impl, debug_checks=False)
        assert out.logprobs.isnan().tolist() == [False, True, False, False]


def test_autocast_casts_like_linear():
    x = head_inputs(N, V, D).requires_grad("hidden", "weight")
    with torch.autocast("cpu", torch.bfloat16):
        out = fused_logprobs(x.hidden, x.weight, x.targets)
        out.logprobs.sum().backward()
    low = fused_logprobs(x.hidden.bfloat16(), x.weight.bfloat16(), x.targets)
    assert torch.equal(out.logprobs, low.logprobs)
    assert x.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_from_logits(dtype, impl):
    x = head_inputs(N, V, D, bias=True)
    values = (x.hidden @ x.weight.T + x.bias).to(dtype)
    mask = torch.arange(N) % 4 != 2
    upstream = torch.randn(N), torch.randn(N)
    found = {}
    for name, made, implementation in (("truth", values.double(), "reference"), ("eager", values, None), ("fused", values, impl)):
        logits = made.clone().requires_grad_()
        if implementation is None:
            logp = torch.log_softmax(logits.float() / 0.8, -1)
            out = [logp.gather(1, x.targets[:, None])[:, 0] * mask, -(logp.exp() * logp).sum(1) * mask]
        else:
            out = logprobs_from_logits(logits, x.targets, temperature=0.8, loss_mask=mask, impl=implementation)[:2]
        grad = torch.autograd.grad(sum((g.to(o.dtype) * o).sum() for g, o in zip(upstream, out, strict=True)), logits)
        found[name] = [*out, *grad]
    for name, got, true, eager in zip(("logprobs", "entropy", "grad_logits"), found["fused"], found["truth"], found["eager"], strict=True):
        assert_within_budget(name, got, true, eager)
    assert torch.all(found["fused"][2][~mask] == 0)


def test_never_holds_the_logits():
    """No tensor of N * V elements is made, forward or backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for o in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(o, torch.Tensor):
                    self.elements = max(self.elements, o.untyped_storage().nbytes() // o.element_size())
            return out

    x = head_inputs(512, 20_000, 16).requires_grad("hidden", "weight")
    budget = 16 << 20
    with Largest() as seen:
        out = fused_logprobs(x.hidden, x.weight, x.targets, memory_budget=budget)
        (out.logprobs.sum() + out.entropy.sum()).backward()
    assert seen.elements <= budget // 4 < 512 * 20_000
