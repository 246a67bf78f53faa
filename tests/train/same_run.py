"""Whether two runs are the same to the bit: metrics, weights, optimizer, state and samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from aer_train.config.tree import TrainConfig
from aer_train.run import checkpoint
from aer_train.run.folder import read_metrics

VOLATILE = ("time/", "time_share/", "perf/", "memory/")


def changed(config: TrainConfig, section: str, **values: Any) -> TrainConfig:
    return replace(config, **{section: replace(getattr(config, section), **values)})


def stable_rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(VOLATILE)} for row in read_metrics(run)]


def final_state(run: Path) -> tuple[dict[str, torch.Tensor], Any, Any]:
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    folder = checkpoint.latest(run)
    state = json.loads((folder / "state.json").read_text())
    del state["files"]  # their metadata has an identifier of its own every time
    dcp_to_torch_save(folder / "optimizer", run / "optimizer.pt")
    return load_file(folder / "model.safetensors"), torch.load(run / "optimizer.pt")["state"], state


def checkpoint_state(run: Path) -> dict[str, Any]:
    return json.loads((checkpoint.latest(run) / "state.json").read_text())


def assert_same_run(a: Path, b: Path) -> None:
    assert stable_rows(a) == stable_rows(b)
    (weights_a, optimizer_a, state_a), (weights_b, optimizer_b, state_b) = final_state(a), final_state(b)
    assert state_a == state_b
    assert weights_a.keys() == weights_b.keys() and all(torch.equal(weights_a[k], weights_b[k]) for k in weights_a)
    assert optimizer_a.keys() == optimizer_b.keys()
    for key, values in optimizer_a.items():
        assert all(torch.equal(values[name], optimizer_b[key][name]) for name in values)
    samples = [sorted((run / "samples").iterdir()) for run in (a, b)]
    assert [p.name for p in samples[0]] == [p.name for p in samples[1]]
    assert all(x.read_bytes() == y.read_bytes() for x, y in zip(*samples, strict=True))
