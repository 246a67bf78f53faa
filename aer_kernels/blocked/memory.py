"""Blocks of rows and columns, and the memory that they are computed in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aer_kernels.blocked.gemm import operand_dtype, statistics_dtype

ALIGNMENT = 64
"""A row of a block is padded to a multiple of this many elements: 128-bit loads and fast products for every vocabulary size."""


def blocks(total: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size`."""
    return (slice(i, min(i + size, total)) for i in range(0, total, size))


def padded_width(columns: int) -> int:
    """Columns of a block in memory."""
    return -(-columns // ALIGNMENT) * ALIGNMENT


def logit_blocks(rows: int, row_block: int, tail_rows: int) -> Iterator[slice]:
    """Rows of raw logits at a time, so that each fp32 block fits into the part of the d_logits memory that is not yet written.

    With tail_rows extra fp32 rows at the end: blocks get smaller towards the end, never below tail_rows.
    """
    start = 0
    while start < rows:
        free = (rows + 2 * tail_rows - start) // 3  # c rows of output and 2 c rows' worth of fp32 input
        size = min(row_block, rows - start, max(tail_rows, free // tail_rows * tail_rows))
        yield slice(start, start + size)
        start += size


class BlockMemory:
    """d_logits of one block in the dtype of the gradient products, and the raw fp32 logits they are made from.

    Where both have one dtype the d_logits overwrite the logits. Otherwise a block of logits lies at the end of the memory, over d_logits
    that are still to come and `tail_rows` fp32 rows of its own.
    """

    def __init__(self, rows: int, columns: int, tail_rows: int, like: Tensor) -> None:
        self.logit_dtype = statistics_dtype(like.dtype)
        self.operand_dtype = operand_dtype(like.dtype, like.device)
        self.in_place = self.logit_dtype == self.operand_dtype
        spare = 0 if self.in_place else tail_rows * padded_width(columns) * self.logit_dtype.itemsize // self.operand_dtype.itemsize
        self.buffer = like.new_empty(rows * padded_width(columns) + spare, dtype=self.operand_dtype)

    def d_logits(self, rows: int, columns: int) -> Tensor:
        """(rows, columns) of the operand dtype, at the front."""
        width = padded_width(columns)
        return self.buffer[: rows * width].view(rows, width)[:, :columns]

    def logits(self, d_logits: Tensor) -> Tensor:
        """The fp32 block from which `d_logits`, a part of the front, is to be made."""
        if self.in_place:
            return d_logits
        rows, columns = d_logits.shape
        width = padded_width(columns)
        numel = rows * width * (self.logit_dtype.itemsize // self.operand_dtype.itemsize)
        return self.buffer[self.buffer.numel() - numel :].view(self.logit_dtype).view(rows, width)[:, :columns]


def scratch_like(rows: int, columns: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """Flat memory for `block_of`."""
    return like.new_empty(rows * padded_width(columns), dtype=dtype)


def block_of(flat: Tensor, rows: int, columns: int) -> Tensor:
    """(rows, columns) at the front of flat memory."""
    width = padded_width(columns)
    return flat[: rows * width].view(rows, width)[:, :columns]
