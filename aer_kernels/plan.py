"""Memory planner: from shapes and a budget in bytes to block sizes, passes and FLOPs.

Workspace is what a call allocates beyond its inputs and its outputs (losses, per-token tensors, gradients in the dtype of their input).
The budget bounds it: a budget that not even one row fits into is an error that names the smallest that works.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aer_kernels.gemm import CAST_ROWS, operand_dtype, statistics_dtype

DEFAULT_BLOCK_BYTES = {"cuda": 1 << 30, "cpu": 64 << 20}
"""Logit block when no budget is given. On a CPU larger ones gain nothing; on a GPU each further chunk costs a pass over grad_weight."""

SCRATCH_ELEMENTS = 1 << 20
"""Logits in a row group of the PyTorch row operations (`aer_kernels.torch_rows`), which hold three copies of a group: 12 MiB in fp32."""


@dataclass(frozen=True)
class Plan:
    """Blocks of one call. Print it to read it."""

    name: str
    num_tokens: int
    vocab_size: int
    hidden_size: int
    row_block: int
    vocab_block: int
    block_bytes: int
    """One logit block with everything that scales with its rows."""
    fixed_bytes: int
    """Accumulators and scratch that do not depend on the number of rows in a block."""
    flops: int
    """Matrix-product FLOPs, forward and backward, if no row is skipped."""

    @property
    def workspace_bytes(self) -> int:
        """Predicted workspace."""
        return self.block_bytes + self.fixed_bytes

    @property
    def num_row_blocks(self) -> int:
        """Passes over the vocabulary."""
        return -(-self.num_tokens // self.row_block) if self.num_tokens else 0

    def describe(self) -> str:
        """One readable paragraph."""
        full = self.num_tokens * self.vocab_size * 4
        return (
            f"{self.name}: {self.num_tokens} tokens x {self.vocab_size} vocabulary x {self.hidden_size} hidden\n"
            f"  blocks     {self.row_block} rows x {self.vocab_block} columns, {self.num_row_blocks} passes over the rows\n"
            f"  workspace  {_mib(self.workspace_bytes)}: {_mib(self.block_bytes)} in blocks, {_mib(self.fixed_bytes)} fixed\n"
            f"  not held   {_mib(full)} of fp32 logits\n"
            f"  products   {self.flops / 1e12:.3f} TFLOP"
        )

    def __str__(self) -> str:
        return self.describe()


def plan_policy_loss(
    num_tokens: int,
    vocab_size: int,
    hidden_size: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cuda",
    in_place: bool = True,
    needs_grad_hidden: bool = True,
    needs_grad_weight: bool = True,
    memory_budget: int | None = None,
) -> Plan:
    """Plan `fused_policy_loss`: chunks of rows over the whole vocabulary, 6 N*V*D FLOPs with both gradients.

    One chunk needs no fp32 grad_weight accumulator, so it is taken whenever it fits, or costs no more memory than chunking does.

    Args:
        num_tokens, vocab_size, hidden_size: N, V, D.
        dtype: of hidden and weight.   device: where they are.
        in_place: whether low-precision d_logits overwrite the fp32 block (Triton) or need memory of their own (PyTorch on a GPU).
        needs_grad_hidden, needs_grad_weight: which gradients are wanted; a missing one drops its product.
        memory_budget: bound on the workspace in bytes; None lets the planner choose.
    Raises:
        ValueError - the budget is too small for one row.
    """
    device = torch.device(device)
    stat, operand = statistics_dtype(dtype).itemsize, operand_dtype(dtype, device).itemsize
    needs_grad = needs_grad_hidden or needs_grad_weight
    row = vocab_size * (stat + (operand if operand != stat and not in_place else 0)) * 17 // 16 + hidden_size * (stat + dtype.itemsize)
    cast = CAST_ROWS * hidden_size * stat if dtype.itemsize < stat and device.type != "cuda" else 0
    scratch = cast + (0 if in_place and device.type == "cuda" else _scratch(num_tokens, vocab_size, stat))
    accumulator = vocab_size * hidden_size * stat if needs_grad_weight and dtype.itemsize < stat else 0
    single_exact = 0 if operand == dtype.itemsize and dtype != torch.float16 else accumulator

    single = num_tokens * row + single_exact + scratch
    block = min(num_tokens * row, max(_default_block(device), accumulator))  # chunking pays for the accumulator anyway
    if single <= (block + accumulator + scratch if memory_budget is None else memory_budget):
        rows, fixed = max(num_tokens, 1), single_exact + scratch
    else:
        fixed = accumulator + scratch
        available = block if memory_budget is None else memory_budget - fixed
        rows = _balanced(num_tokens, available // row, fixed + row, memory_budget)
    flops = 2 * num_tokens * vocab_size * hidden_size * (1 + needs_grad_hidden + needs_grad_weight if needs_grad else 1)
    return Plan("fused_policy_loss", num_tokens, vocab_size, hidden_size, rows, vocab_size, rows * row, fixed, flops)


def plan_logprobs(
    num_tokens: int,
    vocab_size: int,
    hidden_size: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cuda",
    in_place: bool = True,
    needs_grad_hidden: bool = True,
    needs_grad_weight: bool = True,
    memory_budget: int | None = None,
) -> Plan:
    """Plan `fused_logprobs`: 2-D blocks of the logits, computed forward and again backward, 8 N*V*D FLOPs with both gradients.

    Arguments and errors as in `plan_policy_loss`.
    """
    device = torch.device(device)
    stat, operand = statistics_dtype(dtype).itemsize, operand_dtype(dtype, device).itemsize
    needs_grad = needs_grad_hidden or needs_grad_weight
    low_precision = dtype.itemsize < stat
    element = stat + (operand if operand != stat and not in_place else 0)
    cast = CAST_ROWS * hidden_size * stat if low_precision and device.type != "cuda" else 0
    scratch = cast + (0 if in_place and device.type == "cuda" else _scratch(num_tokens, vocab_size, stat))
    fixed = scratch + 4 * stat * num_tokens + (num_tokens * hidden_size * stat if needs_grad_hidden else 0)
    column = hidden_size * stat if needs_grad_weight and low_precision else 0
    row = hidden_size * (stat + dtype.itemsize)

    target = _default_block(device) if memory_budget is None else memory_budget - fixed
    vocab = min(vocab_size, max(1024, int((max(target, 0) / element) ** 0.5)))
    rows = min(max(num_tokens, 1), (target - vocab * column) // (vocab * element + row))
    if rows < 1:
        vocab = min(vocab_size, 1024)
        rows = _balanced(
            num_tokens,
            (target - vocab * column) // (vocab * element + row),
            fixed + vocab * (column + element) + row,
            memory_budget,
        )
    elif rows >= num_tokens:  # all rows at once: wider blocks, grad_weight written once
        vocab = min(vocab_size, max(vocab, (target - rows * row) // (rows * element + column)))
    flops = 2 * num_tokens * vocab_size * hidden_size * (1 + (1 + needs_grad_hidden + needs_grad_weight if needs_grad else 0))
    block = rows * (vocab * element + row) + vocab * column
    return Plan("fused_logprobs", num_tokens, vocab_size, hidden_size, rows, vocab, block, fixed, flops)


def _default_block(device: torch.device) -> int:
    return DEFAULT_BLOCK_BYTES["cuda" if device.type == "cuda" else "cpu"]


def _scratch(num_tokens: int, vocab_size: int, itemsize: int) -> int:
    return 3 * itemsize * max(vocab_size, min(SCRATCH_ELEMENTS, num_tokens * vocab_size))


def _balanced(num_tokens: int, fitting: int, smallest: int, memory_budget: int | None) -> int:
    """Rows a chunk: as many chunks as the fitting size needs, all of nearly the same size."""
    if fitting < 1:
        if memory_budget is not None:
            raise ValueError(f"memory_budget must be at least {smallest} bytes ({_mib(smallest)}) for these shapes, got {memory_budget}")
        fitting = 1
    chunks = -(-num_tokens // fitting)
    return -(-num_tokens // max(chunks, 1)) or 1


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
