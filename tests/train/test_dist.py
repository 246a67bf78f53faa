"""Processes that train together: what they say to each other, and what happens when one fails."""

from __future__ import annotations

import pytest
import torch

from aer_train import dist
from aer_train.model import resolve_device
from tests.train.ranks import CPU


def test_one_process_needs_nobody() -> None:
    with dist.joined(CPU, 1.0):
        assert (dist.rank(), dist.world(), dist.is_main(), dist.local_rank(), dist.launched_rank()) == (0, 1, True, 0, 0)
        assert dist.all_gather("value") == ["value"] and dist.from_main(lambda: 3) == 3
        dist.barrier()
        dist.check_same("step", 1)
        assert not torch.distributed.is_initialized()


def test_an_environment_that_is_not_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    expected = "WORLD_SIZE must be 1 or come with what torchrun sets beside it, got 4 without LOCAL_RANK, MASTER_ADDR, MASTER_PORT"
    with pytest.raises(ValueError, match=expected), dist.joined(CPU, 1.0):
        pass


def test_every_process_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda", 0), "a process by itself"
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", rank)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="--nproc-per-node must be at most the number of GPUs, 2, got local rank 2"):
        resolve_device("auto")
    assert resolve_device("cpu") == CPU
