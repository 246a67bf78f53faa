"""Several processes that train one policy, as torchrun starts them: who this is, and the few things they say to each other.

With one process every function here does nothing (or the obvious). What is exchanged are Python objects over gloo, also where NCCL moves
the tensors; a process that fails ends the job, because torchrun ends the others, and because nobody waits longer than run.timeout.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")


class RankLost(ConnectionError):
    """Another process is gone, and so is the job."""


def rank() -> int:
    """Return the number of this process, 0 .. world() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes the run folder and speaks to the user."""
    return rank() == 0


def launched_world() -> int:
    """Return how many processes torchrun started, also before they have joined."""
    return int(os.environ.get("WORLD_SIZE", 1))


def launched_rank() -> int:
    """Return the number that torchrun gave this process."""
    return int(os.environ.get("RANK", 0)) if launched_world() > 1 else 0


def restarted() -> bool:
    """Whether torchrun has started this command again after a failure (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def local_rank() -> int:
    """Return the number of this process on its machine: which GPU it uses."""
    return int(os.environ.get("LOCAL_RANK", 0)) if launched_world() > 1 else 0


@contextmanager
def joined(device: torch.device, timeout: float) -> Iterator[None]:
    """The processes that torchrun started, joined for as long as the context lasts. Nothing to do for a process that was started alone.

    Args:
        device: what this process computes on; decides between NCCL and gloo.
        timeout: seconds that a process waits for the others before it gives up.
    Raises:
        ValueError - the environment is not what torchrun makes.
    """
    if launched_world() == 1 or dist.is_initialized():
        yield
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        size = os.environ["WORLD_SIZE"]
        raise ValueError(f"WORLD_SIZE must be 1 or come with what torchrun sets beside it, got {size} without {', '.join(missing)}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    wait = timedelta(seconds=timeout)
    store, number, count = next(rendezvous("env://", timeout=wait))
    # a store that outlives a restart still has the addresses of the processes before it
    store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=wait)
    yield
    if dist.is_initialized():  # an engine of vLLM in this process ends it, too
        dist.destroy_process_group()  # not after an error: the others may be inside a collective, which ends with this process


def share(count: int) -> range:
    """Return which of `count` things are this process's: neighbours, so that the shares in the order of the ranks are the whole."""
    return range(count * rank() // world(), count * (rank() + 1) // world())


def all_gather(value: T) -> list[T]:
    """Return the values (any that can be pickled) of all processes in the order of their ranks, everywhere the same list.

    Raises:
        RankLost - another process has failed, or has not come within the time-out.
    """
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    with others_may_fail():
        dist.all_gather_object(found, value)
    return found


def from_main(function: Callable[[], T]) -> T:
    """Call `function` on the main process only, and return (or raise) everywhere what it returned (or raised) there."""
    if world() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    with others_may_fail():
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def barrier() -> None:
    """Wait until every process is here."""
    all_gather(None)


def check_same(name: str, value: Any) -> None:
    """Prove that `value` is the same on all processes.

    Raises:
        RuntimeError - it is not, which would let the processes train different policies without a word.
    """
    values = all_gather(value)
    if any(other != values[0] for other in values):
        raise RuntimeError(f"{name} must be the same on every rank, got {values}")


@contextmanager
def others_may_fail() -> Iterator[None]:
    """Tell by RankLost that a collective inside has failed, which is hardly ever the fault of the process that finds out."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo/" not in str(error):
            raise
        raise RankLost(f"another process has failed, or took longer than run.timeout: {str(error).strip().splitlines()[0]}") from error
