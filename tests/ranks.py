"""A few gloo processes on this machine, as torchrun would start them, for tests that compare them with one."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from aer_train import dist

CPU = torch.device("cpu")
TIMEOUT = 240.0
PRELOAD = [
    "aer_train.trainer",
    "aer_train.evaluation.folder",
    "torch.distributed.fsdp",
    "transformers.models.qwen2",
    "transformers.models.qwen3",
]
"""Imported once for all processes."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def spawn(job: Callable[..., Any], world: int, folder: Path, *args: Any, preload: Sequence[str] = PRELOAD) -> list[Any]:
    """Run job(*args) on every rank, and return what each returned. The first call says what is preloaded."""
    multiprocessing.set_forkserver_preload(list(preload))
    mp.start_processes(_worker, (job, world, free_port(), str(folder), args), nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _worker(rank: int, job: Callable[..., Any], world: int, port: int, folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with dist.joined(CPU, TIMEOUT):
        torch.save(job(*args), f"{folder}/{rank}.pt")
        dist.barrier()  # rank 0 holds the store: gone first, it can take the others' threads down with it
