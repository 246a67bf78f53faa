"""The operators as PyTorch sees them: opcheck, one graph under torch.compile, no device read where none is promised."""

import pytest
import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from aer_kernels import fused_logprobs, fused_policy_loss, logprobs_from_logits
from aer_kernels.testing import head_inputs
from tests.kernels.cases import FUSED

N, V, D = 37, 517, 24
MASK = torch.arange(N) % 4 != 2
TOKENS = {"advantages": torch.linspace(-1, 2, N), "old_logprobs": -torch.linspace(0, 3, N), "entropy_coef": torch.linspace(0, 1, N)}


def scored(x, **options):
    out = fused_logprobs(x.hidden, x.weight, x.targets, bias=x.bias, loss_mask=MASK, **options)
    return out.logprobs.sum() + 0.3 * out.entropy.square().sum()


def trained(x, **options):
    return fused_policy_loss(x.hidden, x.weight, x.targets, bias=x.bias, loss_mask=MASK, **TOKENS, **options).loss


def given(x, **options):
    out = logprobs_from_logits(x.hidden @ x.weight.T, x.targets, loss_mask=MASK, **options)
    return out.logprobs.sum() + 0.3 * out.entropy.square().sum()


FUNCTIONS = {"fused_logprobs": scored, "fused_policy_loss": trained, "logprobs_from_logits": given}


def gradients(call, **options):
    leaves = head_inputs(N, V, D, bias=True).requires_grad("hidden", "weight", "bias")
    loss = call(leaves, **options)
    loss.backward()
    return [loss.detach(), *(g for g in (leaves.hidden.grad, leaves.weight.grad, leaves.bias.grad) if g is not None)]


class Recorder(TorchDispatchMode):
    """Every call of this library's operators with its arguments."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aer_kernels":
            self.calls[func] = args
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize("select_rows", [True, False])
def test_opcheck(select_rows):
    """Schema, fake tensors, autograd registration and tracing of every operator, on the arguments that the functions send."""
    with Recorder() as seen:
        for options in ({}, {"memory_budget": 400_000}, {"main_grad": torch.zeros(V, D)}):
            gradients(scored, select_rows=select_rows, **options)
        for options in ({}, {"main_grad": torch.zeros(V, D)}):
            gradients(trained, select_rows=select_rows, **options)
        retained = head_inputs(N, V, D).requires_grad("hidden", "weight")
        loss = fused_policy_loss(retained.hidden, retained.weight, retained.targets, **TOKENS).loss
        loss.backward(retain_graph=True)
        torch.ops.aer_kernels.scale_(torch.ones(3), torch.tensor(2.0), "torch")  # a GPU scales held gradients in place
        gradients(given)
        gradients(given, inplace_backward=True)
    assert {f.name().partition("::")[2] for f in seen.calls} == {
        "policy_loss", "logprobs", "logprobs_backward", "logits_statistics", "d_logits", "overwrite_logits", "scaled", "scale_", "add_scaled_",
    }  # fmt: skip
    for operator, args in seen.calls.items():
        forward = operator.name().partition("::")[2] in ("policy_loss", "logprobs", "logits_statistics")
        copy = lambda a, keep=forward: a.detach().clone().requires_grad_(keep and a.requires_grad)  # noqa: E731
        torch.library.opcheck(operator, tuple(copy(a) if isinstance(a, torch.Tensor) else a for a in args))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiles_into_one_graph(name, dynamic):
    torch._dynamo.reset()
    call = FUNCTIONS[name]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for got, want in zip(gradients(compiled), gradients(call), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives_are_refused(name):
    x = head_inputs(N, V, D, bias=True).requires_grad("hidden")
    (grad,) = torch.autograd.grad(FUNCTIONS[name](x), x.hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.square().sum().backward()


class DeviceReads(TorchDispatchMode):
    """Records what makes the host wait for a GPU: the value or the number of elements of a tensor. Looks into the operators, too."""

    KINDS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "repeat_interleave")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aer_kernels":
            with self:
                return OPDEFS[func.name()]._init_fn(*args, **(kwargs or {}))
        name = func.name().partition("::")[2].partition(".")[0]
        masks = [a for x in args if isinstance(x, (list, tuple)) for a in x if isinstance(a, torch.Tensor) and a.dtype == torch.bool]
        if name in self.KINDS or (name.startswith("index") and masks):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def device_reads(monkeypatch):
    """A mode that records reads; tolist of a CPU tensor is one that no dispatcher sees. Without the one read that only a CPU does."""
    monkeypatch.setattr("aer_kernels.operators.scaled._is_last_pass", lambda held: False)
    reads, tolist = DeviceReads(), torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: (reads.found.append("tolist"), tolist(x))[1])
    return reads


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("options", [{}, {"batch_invariant": True}, {"memory_budget": 400_000}], ids=str)
def test_no_device_read_without_row_selection(options, impl, device_reads):
    """What a CUDA graph can capture: select_rows=False never asks the device, and computes the same."""
    for call in (scored, trained):
        want = gradients(call, impl="reference")
        with device_reads:
            got = gradients(call, impl=impl, select_rows=False, debug_checks=False, **options)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=2e-4, atol=1e-5)
    assert device_reads.found == []


def test_no_device_read_for_given_logits(device_reads):
    with device_reads:
        gradients(given, impl="triton", debug_checks=False)
    assert device_reads.found == []


@pytest.mark.parametrize("call, reads", [(scored, 2), (trained, 1)])
def test_row_selection_reads_once_a_pass(call, reads, device_reads):
    """Both counts in one read forward; for log-probs another one backward, where rows are selected by their upstream gradient."""
    options = {"batch_invariant": True} if call is trained else {}  # without the filter of clipped rows, which is free on a CPU
    with device_reads:
        gradients(call, debug_checks=False, **options)
    assert device_reads.found == ["tolist"] * reads
