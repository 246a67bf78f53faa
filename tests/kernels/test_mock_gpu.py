"""Compile lane: the functions end to end at real sizes, compiled for GPUs that are not here, on tensors that have no memory.

Checks launch arithmetic beyond 2^31 logits, the products' shapes and dtypes, memory against the plan, and that the host never reads.
"""

import pytest
import torch

from aer_kernels import fused_logprobs, fused_policy_loss, logprobs_from_logits
from aer_kernels.plan import plan_logprobs, plan_policy_loss

pytestmark = pytest.mark.compile

mock = pytest.importorskip("tests.kernels.mock_gpu", reason="Triton is not installed", exc_type=ImportError)

VOCABULARIES = (128_256, 151_936, 152_064, 262_144, 32_003)


def meta(*shape, dtype=torch.bfloat16, grad=False):
    return torch.empty(*shape, dtype=dtype, device="meta", requires_grad=grad)


def tokens(n, *names):
    return {name: meta(n, dtype=torch.float32) for name in names}


STATIC = {"select_rows": False, "debug_checks": False}


@pytest.fixture(params=[80, 90, 100], ids="sm_{}".format)
def gpu(request):
    from aer_kernels.kernels.d_logits import _d_logits_kernel
    from aer_kernels.kernels.policy_loss import _policy_rows_kernel
    from aer_kernels.kernels.row_stats import _row_stats_kernel
    from aer_kernels.kernels.scale import _scale_kernel

    return lambda: mock.mock_gpu(request.param, [_d_logits_kernel, _policy_rows_kernel, _row_stats_kernel, _scale_kernel])


def check_launches(driver):
    assert driver.launches
    for launch in driver.launches:
        assert launch.grid[1:] == (1, 1), "grid.y and grid.z end at 65535"
        assert launch.grid[0] < 2**31 and launch.shared <= mock.SHARED_LIMIT[driver.target.arch]


@pytest.mark.parametrize("hidden_size", [1024, 8192])
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_policy_loss(vocab_size, hidden_size, gpu):
    n = 20_000
    hidden, weight = meta(n, hidden_size, grad=True), meta(vocab_size, hidden_size, grad=True)
    with gpu() as (driver, _):
        out = fused_policy_loss(
            hidden, weight, meta(n, dtype=torch.int64), **tokens(n, "advantages", "old_logprobs", "entropy_coef"), clip_high=0.28, **STATIC
        )
        out.loss.backward()
    check_launches(driver)
    rows = sum(launch.grid[0] for launch in driver.launches if launch.name == "_policy_rows_kernel")
    assert rows == n, "each row once"
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_logprobs(vocab_size, gpu):
    n, hidden_size = 20_000, 2048
    hidden, weight, bias = meta(n, hidden_size, grad=True), meta(vocab_size, hidden_size, grad=True), meta(vocab_size, grad=True)
    with gpu() as (driver, _):
        temperature = meta(n, dtype=torch.float32)
        out = fused_logprobs(hidden, weight, meta(n, dtype=torch.int64), bias=bias, temperature=temperature, softcap=30.0, **STATIC)
        (out.logprobs.sum() + out.entropy.sum()).backward()
    check_launches(driver)
    made = plan_logprobs(n, vocab_size, hidden_size)
    for kernel, columns in (("_row_stats_kernel", made.vocab_block), ("_d_logits_kernel", made.grad_columns)):
        rows = sum(launch.grid[0] for launch in driver.launches if launch.name == kernel)
        assert rows == n * -(-vocab_size // columns), "each row once for each block of the vocabulary"
    assert weight.grad.shape == weight.shape and bias.grad.shape == bias.shape


@pytest.mark.parametrize("inplace", [False, True])
def test_more_than_two_to_the_31_given_logits(inplace, gpu):
    n = 131_072
    logits = meta(n, 151_936, grad=True)
    with gpu() as (driver, inside):
        out = logprobs_from_logits(logits, meta(n, dtype=torch.int64), inplace_backward=inplace, debug_checks=False)
        (out.logprobs.sum() + out.entropy.sum()).backward()
    check_launches(driver)
    assert [launch.grid[0] for launch in driver.launches] == [n, n], "one launch forward, one backward"
    assert (inside.peak < 1 << 28) == inplace, "in place, only per-token memory is made"


SHAPES = {"target": (8192, 151_936, 4096), "narrow": (8192, 151_936, 2048), "long": (131_072, 151_936, 2048), "odd": (5000, 32_003, 1536)}


@pytest.mark.parametrize("gpu", [90], indirect=True, ids=["sm_90"])
@pytest.mark.parametrize("name", SHAPES)
def test_memory_is_what_the_plan_says(name, gpu):
    """Live bytes of every tensor that a call makes, against the plan; the gradients themselves are outputs."""
    n, vocab_size, hidden_size = SHAPES[name]
    per_token = 64 * n * 8
    gradients = (n + vocab_size) * hidden_size * 2
    made = {
        "policy": plan_policy_loss(n, vocab_size, hidden_size),
        "logprobs": plan_logprobs(n, vocab_size, hidden_size),
        "score": plan_logprobs(n, vocab_size, hidden_size, needs_grad_hidden=False, needs_grad_weight=False),
    }
    for kind, plan in made.items():
        hidden, weight = meta(n, hidden_size, grad=kind != "score"), meta(vocab_size, hidden_size, grad=kind != "score")
        targets = meta(n, dtype=torch.int64)
        zeroed = n * hidden_size * 2  # select_rows=False: a copy of hidden with 0 where tokens do not count
        with gpu() as (_, inside):
            if kind == "policy":
                fused_policy_loss(hidden, weight, targets, **tokens(n, "advantages"), entropy_coef=0.1, **STATIC).loss.backward()
            else:
                out = fused_logprobs(hidden, weight, targets, **STATIC)
                if kind == "logprobs":
                    (out.logprobs.sum() + out.entropy.sum()).backward()
        outputs = per_token + zeroed + (gradients if kind != "score" else 0)
        held = gradients if kind == "policy" else 0  # held and scaled gradients exist together in the backward pass
        assert inside.peak <= max(plan.workspace_bytes + outputs, outputs + held), kind
        assert inside.peak >= 0.5 * plan.workspace_bytes, f"{kind}: the plan is not a mere upper bound"


@pytest.mark.parametrize("options", [{}, {"batch_invariant": True}, {"memory_budget": 6 << 30}], ids=str)
def test_nothing_is_read_by_the_host(options, gpu):
    """Reading a meta tensor raises, so a CUDA graph could capture these calls."""
    n, hidden, weight = 4096, meta(4096, 2048, grad=True), meta(151_936, 2048, grad=True)
    with gpu() as (driver, _):
        targets = meta(n, dtype=torch.int64)
        out = fused_policy_loss(hidden, weight, targets, **tokens(n, "advantages", "old_logprobs"), **STATIC, **options)
        scored = fused_logprobs(hidden, weight, targets, **STATIC, **options)
        (out.loss + scored.logprobs.sum()).backward()
    check_launches(driver)
    with gpu(), pytest.raises(RuntimeError, match="meta tensor"):
        fused_logprobs(hidden, weight, targets, select_rows=True, debug_checks=False)
