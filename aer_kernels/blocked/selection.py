"""Which of the N tokens are worked on, and in which order. The host learns their number in one device read, or not at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """Some of `total` tokens. Rows of padding repeat a chosen token, so that every block of rows has one height."""

    total: int
    num: int
    padding: int
    rows: Tensor | None
    """(num + padding,) int64 token indices; None: all tokens in order, without padding."""

    @property
    def size(self) -> int:
        """Rows that are computed."""
        return self.num + self.padding

    def take(self, values: Tensor) -> Tensor:
        """(total, ...) -> (size, ...)."""
        return values if self.rows is None else values.index_select(0, self.rows)

    def coefficients(self, values: Tensor) -> Tensor:
        """(total,) -> (size,), with 0 in the padding, which so carries no gradient."""
        taken = self.take(values)
        if self.padding:
            taken[self.num :] = 0
        return taken.contiguous()

    def tokens(self, rows: slice | Tensor) -> slice | Tensor:
        """Where some of the computed rows are among all tokens."""
        return rows if self.rows is None else self.rows[rows]

    def spread(self, values: Tensor) -> Tensor:
        """(size, ...) -> (total, ...), exactly 0 elsewhere."""
        if self.rows is None:
            return values
        return values.new_zeros(self.total, *values.shape[1:]).index_copy_(0, self.rows[: self.num], values[: self.num])

    def then(self, other: Selection) -> Selection:
        """These rows, then those of another selection without padding."""
        assert self.padding == other.padding == 0, "padding belongs to the last block"
        if self.rows is None or other.rows is None:
            return self if self.rows is None else other
        return Selection(self.total, self.num + other.num, 0, torch.cat([self.rows, other.rows]))


def nothing(total: int, device: torch.device) -> Selection:
    """No token."""
    return Selection(total, 0, 0, torch.empty(0, dtype=torch.int64, device=device))


def everything(total: int, pad_to: int, device: torch.device) -> Selection:
    """All tokens: nothing is asked of the device."""
    padding = -total % pad_to
    return Selection(total, total, padding, torch.arange(total + padding, device=device) % total if padding else None)


def select(first: Tensor, second: Tensor, pad_to: int = 1) -> tuple[Selection, Selection]:
    """The tokens at which `first` holds, and those at which only `second` does; (N,) bool each. One device read."""
    total = first.numel()
    both = first | second
    num_first, num_both = torch.stack([first.sum(), both.sum()]).tolist()
    order = torch.argsort(2 - first.to(torch.int8) - both.to(torch.int8), stable=True)
    return _part(order[:num_first], total, pad_to), _part(order[num_first:num_both], total, pad_to)


def _part(rows: Tensor, total: int, pad_to: int) -> Selection:
    num = rows.numel()
    padding = -num % pad_to
    if padding:
        rows = torch.cat([rows, rows[:1].expand(padding)])
    return Selection(total, num, padding, None if rows.numel() == total == num else rows)
