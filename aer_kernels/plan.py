"""Memory planner: from shapes and a budget in bytes to block sizes, passes and FLOPs.

Workspace is what a call allocates beyond its inputs and its outputs (losses, per-token tensors, gradients in the dtype of their input).
The budget bounds it: a budget that not even one row fits into is an error that names the smallest that works.

Two sizes of block: raw logits in fp32 (small), and d_logits in the dtype that enters the gradient products (large, so that a gradient is
summed in few passes: each further chunk of rows costs a read and a write of an fp32 (V, D) sum). Where both have one dtype (fp32, or a
CPU) they are one block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from aer_kernels.blocked.gemm import CAST_ROWS, operand_dtype, statistics_dtype
from aer_kernels.blocked.memory import padded_width

CPU_BLOCK_BYTES = 128 << 20
"""Block of logits on a CPU. Chunks of 900 rows are 5 % faster than chunks of 500 (4096 x 512 x 32000, 2 cores)."""

GPU_FORWARD_BLOCK = (1024, 8192)
"""Rows and columns of raw logits when only statistics are wanted: 32 MiB, which stay in cache between product and row kernel.
Twice the columns below WIDE_HIDDEN, where the product of a block takes less time than the host needs for the next two launches."""

WIDE_HIDDEN = 4096

SINGLE_CHUNK_SLACK = 1.05
"""One chunk may need this many times the memory of several: it writes grad_weight once, in its own dtype."""

GPU_LOGIT_ROWS, GPU_TAIL_ROWS = 512, 128
"""Most and fewest rows of raw logits at a time beside a block of d_logits."""

GPU_CHUNK_ROWS = 4096
"""Rows of d_logits that make a pass over an fp32 (V, D) sum cheap: about 245 / rows of the time of all products on an H200 (model)."""

GPU_PRODUCT_ROWS = 2048
"""Rows of which the policy loss forms grad_hidden at a time."""

GPU_BACKWARD_BYTES = 320 << 20
"""d_logits of a block in the backward pass of `fused_logprobs`."""

CPU_SCRATCH_ELEMENTS, GPU_SCRATCH_ELEMENTS = 1 << 19, 1 << 24
"""Logits in a row group of the PyTorch row operations (`aer_kernels.torch_rows`). A CPU keeps a group in cache; a GPU needs it to be large:
with the CPU's groups of three rows, a policy loss of 8192 tokens x 151936 took 3 s on an H200."""

TORCH_SCRATCH_COPIES = 3
"""Copies of a row group that they make at most."""

ROW_MULTIPLE = 128
"""Chunks are a multiple of this many rows where they can be: products of odd heights are several percent slower."""

MIN_COLUMNS = 1024
"""Columns of the narrowest block of `fused_logprobs`, or the whole vocabulary where it has fewer."""

INVARIANT_ROWS = {"cpu": 64, "gpu": 512}
"""Rows of every block with batch_invariant: a constant, so that a row's result cannot depend on how many others there are."""

INVARIANT_COLUMNS = 8192
"""Columns of every block of the backward pass with batch_invariant."""


def group_rows(num_rows: int, num_columns: int, on_cpu: bool) -> int:
    """Rows of a block that the PyTorch row operations work on at a time: at most a quarter of the block."""
    elements = CPU_SCRATCH_ELEMENTS if on_cpu else GPU_SCRATCH_ELEMENTS
    return max(1, min(elements // max(num_columns, 1), -(-num_rows // 4)))


def moved_rows(rows: int) -> int:
    """Rows that are moved at a time to fill the place of rows without a gradient."""
    return max(1, min(rows // 16, 64))


def product_rows(device: torch.device) -> int:
    """Rows of which grad_hidden is formed at a time: on a GPU enough to keep it busy, on a CPU all of a chunk."""
    return CPU_BLOCK_BYTES if device.type == "cpu" else GPU_PRODUCT_ROWS


def invariant_rows(device: torch.device) -> int:
    """Rows of every block with batch_invariant on this device."""
    return INVARIANT_ROWS["cpu" if device.type == "cpu" else "gpu"]


@dataclass(frozen=True)
class Plan:
    """Blocks of one call. Print it to read it."""

    name: str
    num_tokens: int
    vocab_size: int
    hidden_size: int
    row_block: int
    """Rows of raw logits at a time."""
    vocab_block: int
    """Columns of raw logits at a time, where only statistics are wanted."""
    grad_rows: int
    """Rows of d_logits at a time."""
    grad_columns: int
    """Columns of d_logits at a time."""
    tail_rows: int
    """Rows of raw logits that have memory of their own beside the d_logits."""
    cached_rows: int
    """Rows whose logits are kept for the backward pass of `fused_logprobs`."""
    batch_invariant: bool
    block_bytes: int
    """One block with everything that scales with its rows."""
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
        """Passes over the vocabulary: chunks of d_logits."""
        return -(-self.num_tokens // self.grad_rows) if self.num_tokens else 0

    def describe(self) -> str:
        """One readable paragraph."""
        full = self.num_tokens * self.vocab_size * 4
        cache = f", logits of {self.cached_rows} rows kept" if self.cached_rows else ""
        return (
            f"{self.name}: {self.num_tokens} tokens x {self.vocab_size} vocabulary x {self.hidden_size} hidden\n"
            f"  logits     {self.row_block} rows x {self.vocab_block} columns{cache}\n"
            f"  gradients  {self.grad_rows} rows x {self.grad_columns} columns, {self.num_row_blocks} passes over the rows\n"
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
    scratch_copies: int | None = None,
    needs_grad_hidden: bool = True,
    needs_grad_weight: bool = True,
    batch_invariant: bool = False,
    memory_budget: int | None = None,
) -> Plan:
    """Plan `fused_policy_loss`: chunks of rows over the whole vocabulary, 6 N*V*D FLOPs with both gradients.

    One chunk needs no fp32 grad_weight sum, so it is taken whenever it fits, or costs no more memory than chunking does.

    Args:
        num_tokens: N.
        vocab_size: V.
        hidden_size: D.
        dtype: of hidden and weight.
        device: where hidden and weight are.
        scratch_copies: copies of a row group that the row operations make. None: those of Triton (0) on a GPU, else those of PyTorch.
        needs_grad_hidden: whether the gradient of hidden is wanted; without it its product is dropped.
        needs_grad_weight: the same for the gradient of weight.
        batch_invariant: as in `fused_policy_loss`.
        memory_budget: bound on the workspace in bytes; None lets the planner choose.
    Raises:
        ValueError: the budget is too small for one row.
    """
    costs = _Costs.of(vocab_size, hidden_size, dtype, torch.device(device), scratch_copies)
    rows_fixed = invariant_rows(torch.device(device)) if batch_invariant else 0
    summed = vocab_size * hidden_size * costs.stat if needs_grad_weight and dtype.itemsize < costs.stat else 0
    total = max(num_tokens, 1)

    def block(rows: int) -> int:
        moved = 0 if batch_invariant else moved_rows(rows)
        d_block = costs.d_block(rows + moved, vocab_size, costs.tail(rows, rows_fixed))
        products = min(rows, costs.product_rows) * hidden_size * costs.element
        return d_block + rows * costs.gathered + products + costs.scratch(rows, vocab_size)

    if memory_budget is not None:
        single = block(total) + costs.cast <= memory_budget
        most = _most(total, block, memory_budget - costs.cast - summed)
    elif costs.in_place:
        single = block(total) <= max(CPU_BLOCK_BYTES if costs.on_cpu else GPU_BACKWARD_BYTES * 4, summed)
        most = _most(total, block, CPU_BLOCK_BYTES if costs.on_cpu else GPU_BACKWARD_BYTES * 4)
    else:
        chunk = min(total, GPU_CHUNK_ROWS if needs_grad_weight else GPU_CHUNK_ROWS // 4)
        single, most = block(total) <= SINGLE_CHUNK_SLACK * (summed + block(chunk)), chunk
    single = single and not rows_fixed
    rows = total if single else _balanced(total, most, costs.cast + summed + block(1), memory_budget)
    fixed = costs.cast + (summed if rows < total else 0)
    if rows_fixed:
        rows = max(rows // rows_fixed, 1) * rows_fixed
        _check_budget(costs.cast + summed + block(rows_fixed), memory_budget)
        fixed = costs.cast + summed
    row_block = rows_fixed or (rows if costs.in_place else min(rows, GPU_LOGIT_ROWS))
    flops = 2 * num_tokens * vocab_size * hidden_size * (1 + needs_grad_hidden + needs_grad_weight)
    return Plan(
        "fused_policy_loss",
        num_tokens,
        vocab_size,
        hidden_size,
        row_block,
        vocab_size,
        rows,
        vocab_size,
        costs.tail(rows, rows_fixed),
        0,
        batch_invariant,
        block(rows),
        fixed,
        flops,
    )


def plan_logprobs(
    num_tokens: int,
    vocab_size: int,
    hidden_size: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cuda",
    scratch_copies: int | None = None,
    needs_grad_hidden: bool = True,
    needs_grad_weight: bool = True,
    batch_invariant: bool = False,
    memory_budget: int | None = None,
) -> Plan:
    """Plan `fused_logprobs`: 2-D blocks of the logits, computed forward and again backward, 8 N*V*D FLOPs with both gradients.

    What a given budget leaves over keeps the logits of the first rows, whose backward pass then costs 4 instead of 6.
    Arguments and errors as in `plan_policy_loss`.
    """
    costs = _Costs.of(vocab_size, hidden_size, dtype, torch.device(device), scratch_copies)
    needs_grad = needs_grad_hidden or needs_grad_weight
    total = max(num_tokens, 1)
    fixed = costs.cast + 8 * costs.stat * num_tokens + (num_tokens * hidden_size * costs.stat if needs_grad_hidden else 0)
    column = hidden_size * costs.stat if needs_grad_weight and dtype.itemsize < costs.stat else 0

    def grad_block(rows: int, columns: int) -> int:
        beside = costs.d_block(rows, columns, costs.tail(rows, 0)) + rows * costs.gathered + costs.scratch(rows, columns)
        return beside + (columns * column if rows < total else 0)

    def logit_block(rows: int, columns: int) -> int:
        return rows * (padded_width(columns) * costs.stat + costs.gathered) + costs.scratch(rows, columns)

    block = grad_block if needs_grad else logit_block
    if batch_invariant:
        rows, columns = invariant_rows(torch.device(device)), min(vocab_size, INVARIANT_COLUMNS)
        row_block, vocab_block = rows, vocab_size
        _check_budget(fixed + max(block(rows, columns), logit_block(rows, vocab_size)), memory_budget)
    else:
        available = (CPU_BLOCK_BYTES if costs.on_cpu else GPU_BACKWARD_BYTES) if memory_budget is None else memory_budget - fixed
        rows, columns = _rectangle(total, vocab_size, block, available)
        rows = _balanced(total, rows, fixed + block(1, min(vocab_size, MIN_COLUMNS)), memory_budget)
        row_block, vocab_block = (rows, columns) if costs.on_cpu else _forward_block(total, vocab_size, hidden_size, logit_block, available)
    used = logit_block(row_block, vocab_block)
    used = max(used, grad_block(rows, columns)) if needs_grad else used
    kept_row, cached = padded_width(vocab_size) * costs.stat, 0
    if memory_budget is not None and needs_grad and not batch_invariant:  # what is left over keeps logits
        cached = max(0, min(num_tokens, (memory_budget - fixed - used - costs.saved_copy(rows, columns)) // kept_row))
    saved = cached * kept_row + (costs.saved_copy(rows, columns) if cached else 0)
    backward = 1 + needs_grad_hidden + needs_grad_weight if needs_grad else 0
    flops = 2 * vocab_size * hidden_size * (num_tokens * (1 + backward) - cached)
    return Plan(
        "fused_logprobs",
        num_tokens,
        vocab_size,
        hidden_size,
        row_block,
        vocab_block,
        rows,
        columns,
        costs.tail(rows, rows if batch_invariant else 0),
        cached,
        batch_invariant,
        used,
        fixed + saved,
        flops,
    )


@dataclass(frozen=True)
class _Costs:
    """Bytes of the parts of a workspace."""

    on_cpu: bool
    in_place: bool
    """d_logits overwrite the logits, as both have one dtype."""
    stat: int
    """A statistic or an element of a sum."""
    element: int
    """A d_logit."""
    gathered: int
    """Hidden states of a row, in the dtype of the products."""
    product_rows: int
    """Rows of which grad_hidden is formed at a time."""
    cast: int
    """The slice of a low-precision weight that a CPU holds in fp32."""
    scratch_copies: int
    """Copies of a row group that the row operations make."""

    @staticmethod
    def of(vocab_size: int, hidden_size: int, dtype: torch.dtype, device: torch.device, scratch_copies: int | None) -> _Costs:
        stat, operand = statistics_dtype(dtype).itemsize, operand_dtype(dtype, device).itemsize
        on_cpu = device.type == "cpu"
        if scratch_copies is None:
            scratch_copies = TORCH_SCRATCH_COPIES if on_cpu else 0
        cast = min(CAST_ROWS, vocab_size) * hidden_size * stat if on_cpu and dtype.itemsize < stat else 0
        gathered = hidden_size * (dtype.itemsize + (operand if operand != dtype.itemsize else 0))
        return _Costs(on_cpu, operand == stat, stat, operand, gathered, product_rows(device), cast, scratch_copies)

    def tail(self, rows: int, fixed: int) -> int:
        """Rows of raw logits beside `rows` of d_logits."""
        return fixed or min(rows, GPU_TAIL_ROWS)

    def d_block(self, rows: int, columns: int, tail_rows: int) -> int:
        """d_logits of a block and what its raw logits need beside them."""
        return padded_width(columns) * (rows * self.element + (0 if self.in_place else tail_rows * self.stat))

    def scratch(self, rows: int, columns: int) -> int:
        return self.scratch_copies * self.stat * columns * group_rows(rows, columns, self.on_cpu)

    def saved_copy(self, rows: int, columns: int) -> int:
        """A block of saved logits on its way to where it is overwritten."""
        return padded_width(columns) * self.stat * (rows if self.in_place else min(rows, GPU_LOGIT_ROWS))


def _rectangle(total: int, vocab_size: int, size: Callable[[int, int], int], available: int) -> tuple[int, int]:
    """Rows and columns of a block for the fewest passes over both gradients; 0 rows when not even one fits.

    A gradient that is summed over k blocks is read and written k times, so the cost is 1 / rows + 1 / columns; none for a whole side.
    """
    columns = min(vocab_size, MIN_COLUMNS)
    best, found = float("inf"), (0, columns)
    while True:
        rows = total if size(total, columns) <= available else _most(total, partial(_swapped, size, columns), available)
        cost = (0.0 if rows == total else 1.0 / max(rows, 1)) + (0.0 if columns == vocab_size else 1.0 / columns)
        if rows and cost < best:
            best, found = cost, (rows, columns)
        if columns == vocab_size:
            break
        columns = min(2 * columns, vocab_size)
    rows, columns = found
    if rows == total:
        columns = max(columns, _most(vocab_size, lambda wide: size(total, wide), available))
    return rows, columns


def _swapped(size: Callable[[int, int], int], columns: int, rows: int) -> int:
    return size(rows, columns)


def _forward_block(num_tokens: int, vocab_size: int, hidden_size: int, size: Callable[[int, int], int], available: int) -> tuple[int, int]:
    """The GPU's block of raw logits, or as many of its rows as there is memory for."""
    wide = GPU_FORWARD_BLOCK[1] * (1 if hidden_size >= WIDE_HIDDEN else 2)
    rows, columns = min(num_tokens, GPU_FORWARD_BLOCK[0]), min(vocab_size, wide)
    return max(1, _most(rows, lambda count: size(count, columns), available)), columns


def _most(limit: int, size: Callable[[int], int], available: int) -> int:
    """The largest count up to `limit` whose size is available; 0 when not even one is."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= available else (low, middle - 1)
    return low


def _balanced(num_tokens: int, fitting: int, smallest: int, memory_budget: int | None) -> int:
    """Rows a chunk: as many chunks as the fitting size needs, all of nearly the same size."""
    if fitting < 1:
        _check_budget(smallest, memory_budget)
    chunks = -(-num_tokens // max(fitting, 1))
    rows = -(-num_tokens // max(chunks, 1)) or 1
    rounded = -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE
    if rounded > fitting:
        rounded = fitting // ROW_MULTIPLE * ROW_MULTIPLE
    return min(rounded, num_tokens) or rows


def _check_budget(smallest: int, memory_budget: int | None) -> None:
    if memory_budget is not None and memory_budget < smallest:
        raise ValueError(f"memory_budget must be at least {smallest} bytes ({_mib(smallest)}) for these shapes, got {memory_budget}")


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
