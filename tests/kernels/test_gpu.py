"""GPU lane: the cases of the default lane on a real GPU, in bf16 too, and what only a GPU can show."""

import pytest
import torch

from aer_kernels import fused_logprobs, fused_policy_loss, logprobs_from_logits
from aer_kernels.plan import plan_policy_loss
from aer_kernels.testing import assert_within_budget, head_inputs
from tests.kernels.cases import check_logprobs, gradients

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


def test_peak_memory_is_what_the_plan_says():
    n, v, d = 4096, 151_936, 1024
    x = head_inputs(n, v, d, dtype=torch.bfloat16, device="cuda").requires_grad("hidden", "weight")
    made = plan_policy_loss(n, v, d)
    fused_policy_loss(x.hidden[:16], x.weight, x.targets[:16], advantages=torch.ones(16, device="cuda"))  # compile, cuBLAS workspace
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fused_policy_loss(x.hidden, x.weight, x.targets, advantages=torch.ones(n, device="cuda"), entropy_coef=0.1).loss.backward()
    outputs = 2 * (n * d + v * d) * 4
    assert torch.cuda.max_memory_allocated() - before <= made.workspace_bytes + outputs


def test_runs_are_bitwise_equal():
    x = head_inputs(2048, 32_003, 256, dtype=torch.bfloat16, device="cuda")
    run = lambda y: fused_logprobs(y.hidden, y.weight, y.targets)  # noqa: E731
    upstream = (torch.randn(2048, device="cuda"), torch.randn(2048, device="cuda"))
    first = gradients(run, x, upstream, ("hidden", "weight"))
    for _ in range(5):
        again = gradients(run, x, upstream, ("hidden", "weight"))
        assert all(torch.equal(a, b) for a, b in zip((*first[0], *first[1]), (*again[0], *again[1]), strict=True))
