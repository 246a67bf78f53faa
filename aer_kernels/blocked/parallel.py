"""A vocabulary split over the ranks of a process group: whole-row statistics from shards, gradient of hidden from partial sums.

Rank k holds consecutive rows of the head; shards may differ in size. Every rank has the same hidden states and targets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor

from aer_kernels.statistics import RowStatistics


def process_group(name: str) -> dist.ProcessGroup:
    """The group of this name: custom operators take no objects, so the name stands for it."""
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


def merge_statistics(stats: RowStatistics, group: str | None) -> RowStatistics:
    """Statistics of whole rows from those of every shard: one all-gather of 16 bytes a row (20 with a floor for the entropy).

    Merged in rank order, so with the same bits everywhere.
    """
    if group is None:
        return stats
    local = stats.packed()
    found = dist.get_world_size(process_group(group))
    gathered = local.new_empty(found * local.shape[0], local.shape[1])
    dist.all_gather_into_tensor(gathered, local, group=process_group(group))
    shards = [RowStatistics(*shard.unbind(0)) for shard in gathered.view(found, *local.shape)]
    merged = shards[0]
    for shard in shards[1:]:
        merged = merged.merge(shard)
    return merged


def start_sum(values: Tensor, group: str | None) -> Callable[[], object]:
    """Begin to sum `values` over the ranks, in place; call the result before they are read."""
    if group is None:
        return lambda: None
    work = dist.all_reduce(values, group=process_group(group), async_op=True)
    assert work is not None
    return work.wait
