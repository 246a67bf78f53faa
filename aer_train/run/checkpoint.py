"""Checkpoints: complete or absent, and enough for training to go on bit for bit, or with another number of processes.

    RUN/checkpoints/step_000020/    a Hugging Face folder (float32 model and tokenizer) that transformers loads like any other, with
        optimizer/                  the moments as a torch distributed checkpoint: every process writes and reads its own shards
        state.json                  steps and prompts behind it, entropy controller, versions, manifest of the other files;
                                    a folder without it is not a checkpoint

There is no generator and no schedule to save: random numbers and the learning rate are functions of the seed and the step.
Several machines need a file system that all of them see.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from aer_kernels import AdaptiveEntropyController
from aer_train import dist
from aer_train.doctor import versions
from aer_train.manifest import Manifest, damage, describe
from aer_train.model import Policy
from aer_train.sharding import full_named_tensors


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int = 0
    """Steps done."""
    prompts: int = 0
    """Prompts taken from the data."""


def save(
    run: Path, progress: Progress, policy: Policy, optimizer: torch.optim.Optimizer, controller: AdaptiveEntropyController, keep: int
) -> Path:
    """Write the checkpoint of a step (complete or not at all), then delete all but the newest `keep`. Returns its folder.

    All processes must call it together.

    Raises:
        FloatingPointError - a weight is not finite; OSError - it could not be written. The checkpoints before are as they were.
    """
    root, name = run / "checkpoints", f"step_{progress.step:06d}"
    folder = root / f".tmp-{name}"
    state = {**asdict(progress), "controller": controller.state_dict(), "versions": versions()}
    dist.check_same("the state of the run", state)
    weights = {name: tensor.cpu() for name, tensor in full_named_tensors(policy.model) if dist.is_main()}
    dist.from_main(lambda: _begin(root, folder, weights))
    try:
        files = _save_optimizer(folder, policy, optimizer)
        dist.from_main(lambda: _finish(root / name, folder, policy, weights, state, files, keep))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return root / name


def latest(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None."""
    found = _complete(run / "checkpoints")
    return found[-1] if found else None


def check(folder: Path) -> None:
    """Prove that a checkpoint is what was written.

    Raises:
        ValueError - a file is damaged or missing; says which checkpoint is before it.
    """
    try:
        found = damage(folder, json.loads((folder / "state.json").read_text())["files"])
    except (ValueError, TypeError, LookupError, AttributeError):
        found = "state.json is garbled"
    if found is not None:
        earlier = [path.name for path in _complete(folder.parent) if path.name < folder.name]
        back = earlier[-1] if earlier else "the beginning"
        raise ValueError(f"checkpoint must be as it was written, got {folder} where {found}: delete this folder to go back to {back}")


def restore(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, controller: AdaptiveEntropyController) -> Progress:
    """Restore optimizer and controller; the model is loaded from the same folder by `load_policy`. Returns how far the run was.

    Raises:
        ValueError - the state does not fit the configuration.
    """
    state = json.loads((folder / "state.json").read_text())
    # betas and weight decay are the configuration's, which may have been overridden for the rest of the run
    found = get_optimizer_state_dict(policy.model, optimizer)
    try:
        with _one_process_is_fine():
            dcp.load({"state": found["state"]}, checkpoint_id=folder / "optimizer")
        controller.load_state_dict(state["controller"])
    except (ValueError, CheckpointException) as error:
        raise ValueError(f"the configuration must fit the checkpoint {folder}: {_reason(error)}") from error
    set_optimizer_state_dict(policy.model, optimizer, found)
    return Progress(state["step"], state["prompts"])


def _begin(root: Path, folder: Path, weights: dict[str, torch.Tensor]) -> None:
    bad = next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None)
    if bad is not None:
        raise FloatingPointError(f"weights must be finite to be saved, got others in {bad}: the policy has diverged, lower optim.lr")
    root.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(root)
    folder.mkdir()


def _save_optimizer(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> Manifest:
    """Every process writes its shards. Returns what the files of all of them are."""
    with _writing():
        dcp.save({"state": get_optimizer_state_dict(policy.model, optimizer)["state"]}, checkpoint_id=folder / "optimizer")
        found = describe(folder, folder.glob(f"optimizer/__{dist.rank()}_*"))
    return {name: text for files in dist.all_gather(found) for name, text in files.items()}


def _finish(
    path: Path, folder: Path, policy: Policy, weights: dict[str, torch.Tensor], state: dict[str, Any], files: Manifest, keep: int
) -> None:
    """Write all that is not sharded, then make the folder a checkpoint by its name."""
    with _writing():
        policy.model.save_pretrained(folder, state_dict=weights)
        policy.tokenizer.save_pretrained(folder)
        policy.generation_config.to_json_file(folder / "generation_config.json")
        others = [file for file in folder.rglob("*") if file.is_file() and file.relative_to(folder).as_posix() not in files]
        state["files"] = files | describe(folder, others)
        (folder / "state.json").write_text(json.dumps(state, indent=2))
        for file in folder.rglob("*"):
            _sync(file)
        _sync(folder)
    if path.exists():  # the run was taken back to an earlier step, or a deletion was interrupted
        (path / "state.json").unlink(missing_ok=True)
        shutil.rmtree(path)
    folder.rename(path)
    _sync(path.parent)
    for old in _complete(path.parent)[:-keep]:
        (old / "state.json").unlink()  # first: an interrupted deletion must not look like a checkpoint
        shutil.rmtree(old)


def _complete(root: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted(path.parent for path in root.glob("step_*/state.json"))


def _remove_unfinished(root: Path) -> None:
    for path in root.glob(".tmp-*"):
        shutil.rmtree(path)


@contextmanager
def _writing() -> Iterator[None]:
    """Make whatever the libraries raise when they cannot write an OSError that says so."""
    try:
        with _one_process_is_fine():
            yield
    except (CheckpointException, SafetensorError, OSError) as error:
        raise OSError(f"checkpoint must be written completely, got {_reason(error)}; the checkpoints before it are as they were") from error


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _reason(error: BaseException) -> str:
    """What went wrong on the first process that failed."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items())
        if isinstance(cause.__context__, OSError):  # torch.save hides a full disk behind an error of its own
            cause = cause.__context__
        return f"{type(cause).__name__}: {cause}" if dist.world() == 1 else f"{type(cause).__name__} on rank {rank}: {cause}"
    return str(error)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
