"""GPU lane: the cases of the default lane on a real GPU, in bf16 too, and what only a GPU can show."""

import pytest
import torch

from aer_kernels import fused_logprobs, fused_policy_loss, logprobs_from_logits
from aer_kernels.plan import plan_logprobs, plan_policy_loss
from aer_kernels.reference import token_statistics
from aer_kernels.testing import assert_within_budget, head_inputs
from tests.kernels.cases import check_logprobs, eager_logprobs, gradients

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.6}, {"softcap": 8.0}], ids=str)
def test_logprobs(options, dtype, impl):
    check_logprobs(head_inputs(300, 5003, 128, dtype=dtype, device="cuda", bias=True), impl, **options)


@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize("budget", [None, 24 << 20], ids=["one_chunk", "many_chunks"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_policy_loss(dtype, budget, impl):
    x = head_inputs(300, 5003, 128, dtype=dtype, device="cuda")
    generator = torch.Generator(device="cuda").manual_seed(0)
    advantages = torch.randn(300, generator=generator, device="cuda")
    old = fused_logprobs(x.hidden, x.weight, x.targets, impl="reference").logprobs + 0.3 * torch.randn(
        300, generator=generator, device="cuda"
    )
    options = {"advantages": advantages, "old_logprobs": old, "entropy_coef": 0.05}
    names = ("hidden", "weight")

    def run(impl, **extra):
        return lambda y: [fused_policy_loss(y.hidden, y.weight, y.targets, impl=impl, **options, **extra).loss]

    def eager(y):
        raw = torch.nn.functional.linear(y.hidden, y.weight).float().requires_grad_()
        from aer_kernels.reference import policy_surrogate, token_statistics

        logprobs, entropy, _ = token_statistics(raw, y.targets)
        return [(-policy_surrogate(logprobs, old, advantages, "ppo", 0.2, 0.2, None) - 0.05 * entropy).mean()]

    one = (torch.ones((), device="cuda"),)
    truth = gradients(run("reference"), x.double(), one, names)
    stick = gradients(eager, x, one, names)
    fused = gradients(run(impl, memory_budget=budget), x, one, names)
    assert_within_budget("loss", fused[0][0], truth[0][0], stick[0][0])
    for name, got, true, other in zip(names, fused[1], truth[1], stick[1], strict=True):
        assert_within_budget(f"grad_{name}", got, true, other)


def test_more_than_two_to_the_31_logits():
    """64-bit row offsets: the last rows of 17000 x 131072 logits are as right as the first."""
    if torch.cuda.get_device_properties(0).total_memory < 30 << 30:
        pytest.skip("needs 30 GiB of GPU memory")
    x = head_inputs(17_000, 131_072, 64, dtype=torch.bfloat16, device="cuda")
    logits = torch.nn.functional.linear(x.hidden, x.weight)
    out = logprobs_from_logits(logits, x.targets)
    last = torch.log_softmax(logits[-8:].float(), -1).gather(1, x.targets[-8:, None])[:, 0]
    torch.testing.assert_close(out.logprobs[-8:], last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["policy", "logprobs", "score"])
def test_peak_memory_is_what_the_plan_says(kind):
    n, v, d = 4096, 151_936, 1024
    x = head_inputs(n, v, d, dtype=torch.bfloat16, device="cuda")
    leaves = x if kind == "score" else x.requires_grad("hidden", "weight")
    made = (
        plan_policy_loss(n, v, d)
        if kind == "policy"
        else plan_logprobs(n, v, d, needs_grad_hidden=kind != "score", needs_grad_weight=kind != "score")
    )

    def run(rows):
        hidden, targets = leaves.hidden[:rows], leaves.targets[:rows]
        if kind == "policy":
            return fused_policy_loss(hidden, leaves.weight, targets, advantages=torch.ones(rows, device="cuda"), entropy_coef=0.1).loss
        out = fused_logprobs(hidden, leaves.weight, targets)
        return out.logprobs.sum() + out.entropy.sum()

    for rows in (16, n):  # the first compiles and allocates the products' own workspace
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = run(rows)
        if kind != "score":
            loss.backward()
            leaves.hidden.grad = leaves.weight.grad = None
        del loss
    gradients = 0 if kind == "score" else (n * d + v * d) * 2
    held = gradients if kind == "policy" else 0
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= max(made.workspace_bytes + gradients, gradients + held) + 64 * n * 8


STATIC = {"select_rows": False, "debug_checks": False}


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_the_host_never_waits(batch_invariant):
    """Synchronizing calls are errors here; the first call compiles and may synchronize."""
    x = head_inputs(512, 32_003, 256, dtype=torch.bfloat16, device="cuda").requires_grad("hidden", "weight")
    advantages, old = torch.randn(512, device="cuda"), -torch.rand(512, device="cuda")
    options = STATIC | {"batch_invariant": batch_invariant}

    def run():
        loss = fused_policy_loss(x.hidden, x.weight, x.targets, advantages=advantages, old_logprobs=old, entropy_coef=0.1, **options).loss
        out = fused_logprobs(x.hidden, x.weight, x.targets, **options)
        (loss + out.logprobs.sum() + out.entropy.sum()).backward()

    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_graph_capture():
    """Forward and backward captured once and replayed on other inputs."""
    n, v, d = 512, 32_003, 256
    x = head_inputs(n, v, d, dtype=torch.bfloat16, device="cuda").requires_grad("hidden", "weight")
    advantages = torch.randn(n, device="cuda")

    def run():
        out = fused_policy_loss(x.hidden, x.weight, x.targets, advantages=advantages, entropy_coef=0.1, debug_checks=False)
        out.loss.backward()
        return out.loss

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            x.hidden.grad = x.weight.grad = None
            run()
    torch.cuda.current_stream().wait_stream(stream)
    x.hidden.grad = x.weight.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = run()
    advantages.copy_(torch.randn(n, device="cuda"))
    graph.replay()
    replayed = [loss.clone(), x.hidden.grad.clone(), x.weight.grad.clone()]
    x.hidden.grad = x.weight.grad = None
    eager = fused_policy_loss(x.hidden, x.weight, x.targets, advantages=advantages, entropy_coef=0.1, **STATIC).loss
    eager.backward()
    for got, want in zip(replayed, (eager.detach(), x.hidden.grad, x.weight.grad), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_its_batch(dtype):
    x = head_inputs(1500, 32_003, 256, dtype=dtype, device="cuda")

    def run(rows):
        hidden = x.hidden[rows].clone().requires_grad_()
        out = fused_logprobs(hidden, x.weight, x.targets[rows], batch_invariant=True)
        (grad,) = torch.autograd.grad(out.logprobs.sum() + out.entropy.sum(), hidden)
        return [out.logprobs, out.entropy, grad]

    whole = run(torch.arange(1500, device="cuda"))
    for rows in ([7], [1499, 3, 800], list(range(100, 900))):
        index = torch.tensor(rows, device="cuda")
        for got, want in zip(run(index), whole, strict=True):
            assert torch.equal(got, want[index])


def test_compiled_by_inductor():
    x = head_inputs(300, 5003, 128, dtype=torch.bfloat16, device="cuda").requires_grad("hidden", "weight")
    advantages = torch.randn(300, device="cuda")
    loss = lambda h, w: fused_policy_loss(h, w, x.targets, advantages=advantages, entropy_coef=0.1).loss  # noqa: E731
    want = [loss(x.hidden, x.weight), *torch.autograd.grad(loss(x.hidden, x.weight), [x.hidden, x.weight])]
    compiled = torch.compile(loss, fullgraph=True)
    got = [compiled(x.hidden, x.weight), *torch.autograd.grad(compiled(x.hidden, x.weight), [x.hidden, x.weight])]
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_accuracy_of_bf16_inputs():
    """All of the error is that of the product's fp32 sums: on its very logits, statistics are within a few roundings of float64.

    bf16 logits are what costs: eager is a hundred times further from the truth.
    """
    x = head_inputs(512, 151_936, 1024, dtype=torch.bfloat16, device="cuda")
    out = fused_logprobs(x.hidden, x.weight, x.targets)
    truth = fused_logprobs(x.hidden.double(), x.weight.double(), x.targets, impl="reference")
    product = torch.mm(x.hidden, x.weight.T, out_dtype=torch.float32)
    own = logprobs_from_logits(product, x.targets)
    exact = token_statistics(product.double(), x.targets)
    eager = eager_logprobs(x)
    for name, got, alone, on_logits, true, stick in zip(("logprobs", "entropy"), out, own, exact, truth, eager, strict=False):
        assert_within_budget(f"{name} of given logits", alone, on_logits, on_logits)
        assert_within_budget(name, got, true, on_logits)
        assert 100 * (got - true).abs().max() <= (stick - true).abs().max(), name


def test_runs_are_bitwise_equal():
    x = head_inputs(2048, 32_003, 256, dtype=torch.bfloat16, device="cuda")
    run = lambda y: fused_logprobs(y.hidden, y.weight, y.targets)  # noqa: E731
    upstream = (torch.randn(2048, device="cuda"), torch.randn(2048, device="cuda"))
    first = gradients(run, x, upstream, ("hidden", "weight"))
    for _ in range(5):
        again = gradients(run, x, upstream, ("hidden", "weight"))
        assert all(torch.equal(a, b) for a, b in zip((*first[0], *first[1]), (*again[0], *again[1]), strict=True))
