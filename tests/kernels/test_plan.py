"""The planner: budgets are kept in reality, one chunk where it costs nothing, readable plans."""

import pytest
import torch

from aer_kernels import fused_logprobs, fused_policy_loss
from aer_kernels.blocked.memory import logit_blocks
from aer_kernels.plan import plan_logprobs, plan_policy_loss
from aer_kernels.testing import head_inputs

QWEN = {"num_tokens": 8192, "vocab_size": 151_936, "hidden_size": 4096}


def peak_bytes(call) -> int:
    """Largest sum of live allocations that `call` makes, from the CPU allocator's own events."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof:
        call()
    live = peak = 0
    for event in prof.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 24 << 20, 40 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_policy_loss_stays_within_its_plan(dtype, budget):
    n, v, d = 4096, 16_000, 64
    x = head_inputs(n, v, d, dtype=dtype).requires_grad("hidden", "weight")
    made = plan_policy_loss(n, v, d, dtype=dtype, device="cpu", memory_budget=budget)
    outputs = (n * d + v * d) * 4 + 64 * n * 8  # gradients held from forward to backward, per-token tensors
    seen = peak_bytes(
        lambda: fused_policy_loss(x.hidden, x.weight, x.targets, advantages=torch.ones(n), entropy_coef=0.1, memory_budget=budget)
    )
    assert seen <= made.workspace_bytes + outputs
    assert budget is None or made.workspace_bytes <= budget
    assert seen < n * v * 4 or dtype == torch.bfloat16


@pytest.mark.parametrize("budget", [None, 24 << 20, 40 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logprobs_stay_within_their_plan(dtype, budget):
    n, v, d = 1024, 16_000, 64
    x = head_inputs(n, v, d, dtype=dtype).requires_grad("hidden", "weight")
    made = plan_logprobs(n, v, d, dtype=dtype, device="cpu", memory_budget=budget)

    def call():
        out = fused_logprobs(x.hidden, x.weight, x.targets, memory_budget=budget)
        (out.logprobs.sum() + out.entropy.sum()).backward()

    outputs = (n * d + v * d) * 4 * 2 + 64 * n * 8
    assert peak_bytes(call) <= made.workspace_bytes + outputs
    assert budget is None or made.workspace_bytes <= budget


def test_one_chunk_where_it_needs_no_more_memory_than_chunking():
    """bf16 on a GPU: chunking adds an fp32 (V, D) accumulator of 2.5 GB, more than the logits of 4096 tokens."""
    assert plan_policy_loss(4096, 151_936, 4096).num_row_blocks == 1
    chunked = plan_policy_loss(65_536, 151_936, 4096)
    assert chunked.num_row_blocks > 1 and chunked.fixed_bytes >= 151_936 * 4096 * 4
    assert plan_policy_loss(65_536, 151_936, 4096, needs_grad_weight=False).fixed_bytes < chunked.fixed_bytes


@pytest.mark.parametrize("plan", [plan_policy_loss, plan_logprobs])
@pytest.mark.parametrize("budget", [4 << 30, 8 << 30])
def test_budgets_at_real_sizes(plan, budget):
    made = plan(**QWEN, memory_budget=budget)
    assert made.workspace_bytes <= budget
    assert made.num_row_blocks == 1, "both budgets hold the 2.5 GB of bf16 d_logits"


def test_a_large_budget_keeps_logits():
    """8 N*V*D become 6 when the budget holds all fp32 logits beside the block; without a budget nothing is kept."""
    nvd = 8192 * 151_936 * 4096
    assert plan_logprobs(**QWEN).cached_rows == 0
    some, everything = (plan_logprobs(**QWEN, memory_budget=b << 30) for b in (4, 8))
    assert 0 < some.cached_rows < 8192 == everything.cached_rows
    assert everything.flops == 6 * nvd < some.flops < 8 * nvd
    assert plan_logprobs(**QWEN, memory_budget=8 << 30, needs_grad_hidden=False, needs_grad_weight=False).cached_rows == 0


def test_default_plans_at_the_target_shape():
    """What the H200 targets allow beyond the outputs; predictions, held against the allocator in the GPU lane."""
    assert plan_policy_loss(**QWEN).workspace_bytes <= 2.7e9
    assert plan_logprobs(**QWEN).workspace_bytes <= 0.5e9
    assert plan_logprobs(**QWEN, needs_grad_hidden=False, needs_grad_weight=False).workspace_bytes <= 64e6


@pytest.mark.parametrize("rows, row_block, tail", [(8192, 512, 128), (300, 512, 128), (100, 512, 100), (129, 64, 64), (7, 3, 2)])
def test_logit_blocks_fit_before_the_d_logits_they_become(rows, row_block, tail):
    """A block of c fp32 rows at the end of the memory must not reach back into the 16-bit rows that it is turned into."""
    last = 0
    for block in logit_blocks(rows, row_block, tail):
        size = block.stop - block.start
        assert block.start == last and 1 <= size <= max(row_block, tail)
        assert 2 * block.stop <= 2 * rows + 4 * tail - 4 * size, "bytes a column, from the front"
        last = block.stop
    assert last == rows


def test_flops_and_description():
    made = plan_policy_loss(**QWEN)
    nvd = 8192 * 151_936 * 4096
    assert made.flops == 6 * nvd and plan_logprobs(**QWEN).flops == 8 * nvd
    assert plan_policy_loss(**QWEN, needs_grad_weight=False).flops == 4 * nvd
    assert plan_logprobs(**QWEN, needs_grad_hidden=False, needs_grad_weight=False).flops == 2 * nvd
    text = str(made)
    for part in ("8192 tokens x 151936 vocabulary x 4096 hidden", "not held   4,748.0 MiB of fp32 logits", "30.589 TFLOP"):
        assert part in text


@pytest.mark.parametrize("plan", [plan_policy_loss, plan_logprobs])
def test_no_tokens(plan):
    assert plan(0, 100, 8, device="cpu").num_row_blocks == 0
