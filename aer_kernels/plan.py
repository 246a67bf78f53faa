"""Memory planner: from shapes and a budget in bytes to block sizes, passes and FLOPs.

Workspace is what a call allocates beyond its inputs and its outputs (losses, per-token tensors, gradients in the dtype of their input).
The budget bounds it: a budget that not even one row fits into is an error that names the smallest that works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from aer_kernels.gemm import CAST_ROWS, operand_dtype, statistics_dtype

DEFAULT_BLOCK_BYTES = {"cuda": 1 << 30, "cpu": 64 << 20}
"""Logit block when no budget is given. On a CPU larger ones gain nothing; on a GPU each further chunk costs a pass over grad_weight."""

SCRATCH_ELEMENTS = 1 << 20
"""Logits in a row group of the PyTorch row operations (`aer_kernels.torch_rows`), which hold three copies of a group: 12 MiB in fp32."""

MIN_VOCAB_BLOCK = 1024
"""Columns of the narrowest block of `fused_logprobs`, or the whole vocabulary where it has fewer."""


def group_rows(num_rows: int, num_columns: int) -> int:
    """Rows of a block that the PyTorch row operations work on at a time: at most a quarter of the block."""
    return max(1, min(SCRATCH_ELEMENTS // max(num_columns, 1), -(-num_rows // 4)))


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
    costs = _Costs.of(vocab_size, hidden_size, dtype, device, in_place)
    accumulator = vocab_size * hidden_size * costs.stat if needs_grad_weight and dtype.itemsize < costs.stat else 0
    direct = operand_dtype(dtype, device) == dtype != torch.float16  # one chunk writes grad_weight in its own dtype

    def block(rows: int) -> int:
        moved = max(1, rows // 16)  # rows with a zero gradient are filled up from the back
        return (rows + moved) * vocab_size * costs.element + rows * costs.row + costs.scratch(rows, vocab_size)

    available = max(_default_block(device), accumulator) if memory_budget is None else memory_budget - costs.cast - accumulator
    single, single_fixed = block(max(num_tokens, 1)), costs.cast + (0 if direct else accumulator)
    if single + single_fixed <= (available + costs.cast + accumulator):
        rows, fixed = max(num_tokens, 1), single_fixed
    else:
        fixed = costs.cast + accumulator
        rows = _balanced(num_tokens, _most(num_tokens, block, available), fixed + block(1), memory_budget)
    flops = 2 * num_tokens * vocab_size * hidden_size * (1 + needs_grad_hidden + needs_grad_weight)
    return Plan("fused_policy_loss", num_tokens, vocab_size, hidden_size, rows, vocab_size, block(rows), fixed, flops)


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
    costs = _Costs.of(vocab_size, hidden_size, dtype, device, in_place)
    needs_grad = needs_grad_hidden or needs_grad_weight
    fixed = costs.cast + 4 * costs.stat * num_tokens + (num_tokens * hidden_size * costs.stat if needs_grad_hidden else 0)
    column = hidden_size * costs.stat if needs_grad_weight and dtype.itemsize < costs.stat else 0

    def block(rows: int, columns: int) -> int:
        return rows * (columns * costs.element + costs.row) + columns * column + costs.scratch(rows, columns)

    available = _default_block(device) if memory_budget is None else memory_budget - fixed
    narrow = min(vocab_size, MIN_VOCAB_BLOCK)
    columns = min(vocab_size, max(narrow, int((max(available, 0) / costs.element) ** 0.5)))
    if block(1, columns) > available:
        columns = narrow
    fitting = _most(num_tokens, lambda rows: block(rows, columns), available)
    rows = _balanced(num_tokens, fitting, fixed + block(1, narrow), memory_budget)
    if rows >= num_tokens:  # all rows at once: wider blocks, grad_weight written once
        columns = max(columns, _most(vocab_size, lambda wide: block(rows, wide), available))
    flops = 2 * num_tokens * vocab_size * hidden_size * (1 + (1 + needs_grad_hidden + needs_grad_weight if needs_grad else 0))
    return Plan("fused_logprobs", num_tokens, vocab_size, hidden_size, rows, columns, block(rows, columns), fixed, flops)


@dataclass(frozen=True)
class _Costs:
    """Bytes of the parts of a workspace."""

    stat: int
    """A statistic or an element of an accumulator."""
    element: int
    """A logit of a block, with its d_logits where they need memory of their own."""
    row: int
    """Hidden states of a row of a block, and their gradient."""
    cast: int
    """The slice of a low-precision weight that a CPU holds in fp32."""
    scratch_copies: int
    """Copies of a row group that the row operations make."""

    @staticmethod
    def of(vocab_size: int, hidden_size: int, dtype: torch.dtype, device: torch.device, in_place: bool) -> _Costs:
        stat, operand = statistics_dtype(dtype).itemsize, operand_dtype(dtype, device).itemsize
        on_cpu = device.type != "cuda"
        return _Costs(
            stat,
            stat + (operand if operand != stat and not in_place else 0),
            hidden_size * (stat + dtype.itemsize),
            min(CAST_ROWS, vocab_size) * hidden_size * stat if on_cpu and dtype.itemsize < stat else 0,
            0 if in_place and not on_cpu else 3,
        )

    def scratch(self, rows: int, columns: int) -> int:
        return self.scratch_copies * self.stat * columns * group_rows(rows, columns)


def _default_block(device: torch.device) -> int:
    return DEFAULT_BLOCK_BYTES["cuda" if device.type == "cuda" else "cpu"]


def _most(limit: int, size: Callable[[int], int], available: int) -> int:
    """The largest count up to `limit` whose size is available; 0 when not even one is."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= available else (low, middle - 1)
    return low


def _balanced(num_tokens: int, fitting: int, smallest: int, memory_budget: int | None) -> int:
    """Rows a chunk: as many chunks as the fitting size needs, all of nearly the same size."""
    if fitting < 1 <= num_tokens and memory_budget is not None:
        raise ValueError(f"memory_budget must be at least {smallest} bytes ({_mib(smallest)}) for these shapes, got {memory_budget}")
    chunks = -(-num_tokens // max(fitting, 1))
    return -(-num_tokens // max(chunks, 1)) or 1


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
