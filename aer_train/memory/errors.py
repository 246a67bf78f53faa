"""Out of memory, known by its many errors and told in a line with what to change; and whatever else a model's own code raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SIGNS = ("can't allocate memory", "Cannot allocate memory", "std::bad_alloc")
"""In errors of the allocator of a CPU, and of files that are mapped."""


@contextmanager
def memory_errors(way_out: str) -> Iterator[None]:
    """Tell that the memory was not enough by a MemoryError with what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise MemoryError(f"out of memory: {way_out} ({reason})") from error


@contextmanager
def model_errors(rule: str) -> Iterator[None]:
    """Tell by a ValueError, `rule` and a line, what a model's own code raises: anything. Only running out of memory stays what it is."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip() or "no reason").splitlines()[0]
        raise ValueError(f"{rule}: {type(error).__name__}: {reason}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is that of an allocator: PyTorch's of a GPU or a CPU, or Python's."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in text for words in SIGNS)
