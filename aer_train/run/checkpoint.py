"""Checkpoints: complete or absent, and enough for training to go on bit for bit, or with another number of processes.

    RUN/checkpoints/step_000020/    a Hugging Face folder (model in model.param_dtype, tokenizer) that transformers loads like any other;
                                    with LoRA PEFT's folder of the adapters alone, with
        optimizer/                  the moments as a torch distributed checkpoint: every process writes and reads its own shards
        pass_rates.json             with the section difficulty, of each prompt
        ahead.parquet               with rollout.ahead, the samples of the step after
        state.json                  steps and prompts behind it, state of the method, versions, manifest of the other files, parameters
                                    without moments as no gradient has reached them yet, digest of weights that are needed but not here;
                                    a folder without it is not a checkpoint

There is no generator and no schedule to save: random numbers and the learning rate are functions of the seed and the step.
Several machines need a file system that all of them see.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from aer_kernels.methods import Method, asking
from aer_train import dist
from aer_train.data.difficulty import Difficulty
from aer_train.model import Policy
from aer_train.model.lora import adapter_tensors, has_adapters, save_adapters
from aer_train.run.manifest import Manifest, damage, describe
from aer_train.run.moments import Moments, moments_of, moments_to_fill
from aer_train.run.shards import TensorReader
from aer_train.run.versions import versions
from aer_train.sharding import full_named_tensors

RATES = "pass_rates.json"
"""File with the pass rates of prompts."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int = 0
    """Steps done."""
    prompts: int = 0
    """Prompts taken from the data."""


def save(
    run: Path,
    progress: Progress,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    method: Method,
    keep: int,
    difficulty: Difficulty | None = None,
    frozen: str | None = None,
    write_more: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write the checkpoint of a step (complete or not at all), then delete all but the newest `keep`. Returns its folder.

    All processes must call it together.

    Args:
        frozen: digest of the weights that the run needs and no checkpoint holds.
        write_more: is given the folder by the main process, and may write more files there.
    Raises:
        FloatingPointError - a weight is not finite; OSError - it could not be written. The checkpoints before are as they were.
    """
    root, name = run / "checkpoints", f"step_{progress.step:06d}"
    folder = root / f".tmp-{name}"
    moments = moments_of(policy.model, optimizer)
    state = {
        **asdict(progress),
        "method": asking.saved(method),
        "versions": versions(),
        "frozen": frozen,
        "untouched": _without_moments(policy, optimizer, moments),
    }
    rates = None if difficulty is None or not difficulty.on else json.dumps(difficulty.state_dict())
    dist.check_same("the state of the run", (state, rates))
    tensors = adapter_tensors(policy.model) if has_adapters(policy.model) else full_named_tensors(policy.model)
    weights = {name: tensor.cpu() for name, tensor in tensors if dist.is_main()}
    dist.from_main(lambda: _begin(root, folder, weights))
    try:
        files = _save_optimizer(folder, moments)
        dist.from_main(lambda: _finish(root / name, folder, policy, weights, state, rates, files, keep, write_more))
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


def frozen_of(folder: Path) -> str | None:
    """Return the digest that a checkpoint has of the weights that are needed beside it, if it has one."""
    return json.loads((folder / "state.json").read_text()).get("frozen")


def restore(
    folder: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    method: Method,
    difficulty: Difficulty | None = None,
    frozen: str | None = None,
) -> Progress:
    """Restore optimizer, method and pass rates; the model is loaded from the same folder by `load_policy`. Returns how far the run was.

    Args:
        frozen: as for `save`.
    Raises:
        ValueError - the state does not fit the configuration, or is more than tensors, or the frozen weights are others.
    """
    state = json.loads((folder / "state.json").read_text())
    if None not in (frozen, frozen_of(folder)) and frozen != frozen_of(folder):
        raise ValueError(f"model.name must be what the run began with (model.revision names a commit), got other weights than at {folder}")
    reader = TensorReader(folder / "optimizer")
    written, use = moments_to_fill(policy.model, optimizer, set(state.get("untouched", ())))
    try:
        with _one_process_is_fine():
            dcp.load({"state": written}, storage_reader=reader)
        asking.restore(method, state["method"])
        if difficulty is not None and difficulty.on and (folder / RATES).is_file():  # else rates are kept from now on
            difficulty.load_state_dict(json.loads((folder / RATES).read_text()))
    except (ValueError, CheckpointException) as error:
        raise ValueError(f"the configuration must fit the checkpoint {folder}: {_reason(error)}") from error
    use()
    return Progress(state["step"], state["prompts"])


def _begin(root: Path, folder: Path, weights: dict[str, torch.Tensor]) -> None:
    bad = next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None)
    if bad is not None:
        raise FloatingPointError(f"weights must be finite to be saved, got others in {bad}: the policy has diverged, lower optim.lr")
    root.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(root)
    folder.mkdir()


def _without_moments(policy: Policy, optimizer: torch.optim.Optimizer, moments: Moments) -> list[str]:
    """Names of the parameters that the optimizer moves and that have had no gradient yet, such as a vision tower under text."""
    moved = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    return [name for name, parameter in policy.model.named_parameters() if parameter in moved and not moments.get(name)]


def _save_optimizer(folder: Path, moments: Moments) -> Manifest:
    """Every process writes its shards. Returns what the files of all of them are."""
    with _writing():
        dcp.save({"state": moments}, checkpoint_id=folder / "optimizer")
        found = describe(folder, folder.glob(f"optimizer/__{dist.rank()}_*"))
    return {name: text for files in dist.all_gather(found) for name, text in files.items()}


def _finish(
    path: Path,
    folder: Path,
    policy: Policy,
    weights: dict[str, torch.Tensor],
    state: dict[str, Any],
    rates: str | None,
    files: Manifest,
    keep: int,
    write_more: Callable[[Path], None],
) -> None:
    """Write all that is not sharded, then make the folder a checkpoint by its name."""
    with _writing():
        if has_adapters(policy.model):
            save_adapters(policy.model, weights, folder)
        else:
            policy.model.save_pretrained(folder, state_dict=weights)
        policy.tokenizer.save_pretrained(folder)
        policy.generation_config.to_json_file(folder / "generation_config.json")
        if rates is not None:
            (folder / RATES).write_text(rates)
        write_more(folder)
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
