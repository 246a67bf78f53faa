"""Checkpoints: complete or absent, and enough for training to go on bit for bit.

    RUN/checkpoints/step_000020/    a Hugging Face folder (model and tokenizer) that transformers loads like any other, with
        trainer.pt                  the optimizer
        state.json                  steps and prompts behind it, entropy controller, versions; a folder without it is not a checkpoint

There is no generator and no schedule to save: random numbers and the learning rate are functions of the seed and the step.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from aer_kernels import AdaptiveEntropyController
from aer_train.doctor import versions
from aer_train.model import Policy


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
    """Write the checkpoint of a step (complete or not at all), then delete all but the newest `keep`. Returns its folder."""
    root, name = run / "checkpoints", f"step_{progress.step:06d}"
    root.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(root)
    folder = root / f".tmp-{name}"
    folder.mkdir()
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    policy.generation_config.to_json_file(folder / "generation_config.json")
    torch.save({"optimizer": optimizer.state_dict()}, folder / "trainer.pt")
    state = {**asdict(progress), "controller": controller.state_dict(), "versions": versions()}
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    for path in folder.iterdir():
        _sync(path)
    _sync(folder)
    if (root / name).exists():  # the run was taken back to an earlier step, or a deletion was interrupted
        (root / name / "state.json").unlink(missing_ok=True)
        shutil.rmtree(root / name)
    folder.rename(root / name)
    _sync(root)
    for old in _complete(root)[:-keep]:
        (old / "state.json").unlink()  # first: an interrupted deletion must not look like a checkpoint
        shutil.rmtree(old)
    return root / name


def latest(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None."""
    found = _complete(run / "checkpoints")
    return found[-1] if found else None


def restore(folder: Path, optimizer: torch.optim.Optimizer, controller: AdaptiveEntropyController) -> Progress:
    """Restore optimizer and controller; the model is loaded from the same folder by `load_policy`. Returns how far the run was.

    Raises:
        ValueError - the state does not fit the configuration.
    """
    state = json.loads((folder / "state.json").read_text())
    try:
        saved = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True)["optimizer"]
        # betas and weight decay are the configuration's, which may have been overridden for the rest of the run
        optimizer.load_state_dict({"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]})
        controller.load_state_dict(state["controller"])
    except ValueError as error:
        raise ValueError(f"the configuration must fit the checkpoint {folder}: {error}") from error
    return Progress(state["step"], state["prompts"])


def _complete(root: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted(path.parent for path in root.glob("step_*/state.json"))


def _remove_unfinished(root: Path) -> None:
    for path in root.glob(".tmp-*"):
        shutil.rmtree(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
