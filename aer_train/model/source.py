"""Where a model comes from, and what is published with it."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from aer_train.config.tree import ModelConfig

COUNTDOWN_POLICY = Path(__file__).parents[1] / "tasks" / "countdown_policy"


def published_config(source: str, config: ModelConfig) -> Any:
    """Return the configuration that is published with the model; what it says about the code to run does not count.

    Args:
        source: of `model_source`.
    Raises:
        OSError, ValueError - it cannot be read.
    """
    from transformers import AutoConfig

    trust = config.trust_remote_code  # never None, at which transformers asks the terminal
    found = AutoConfig.from_pretrained(source, revision=config.revision, trust_remote_code=trust)
    found._attn_implementation = config.attn_implementation  # also None, and in all its parts: it may name kernels of anybody
    return found


def load_error(error: BaseException) -> str:
    """Return in one line what transformers says when it cannot load a model."""
    if isinstance(error, UnpicklingError):
        return "its weights must be tensors alone (best as safetensors), got a pickle of something else"
    if "trust_remote_code" in str(error):
        return "it comes with Python files of its own, which only model.trust_remote_code true would run"
    reason = (str(error).strip().splitlines() or ["no reason"])[0]
    return reason if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {reason}"


def model_source(name: str) -> str:
    """Return what transformers loads for `model.name`; a name that can only be a folder must exist.

    Raises:
        ValueError - the folder is missing.
    """
    if name == "builtin:countdown":
        return str(COUNTDOWN_POLICY)
    if name.startswith("builtin:"):
        raise ValueError(f"model.name must be builtin:countdown, a Hugging Face model id or a folder, got {name!r}")
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ValueError(f"model.name must be an existing folder or a Hugging Face model id, got {name!r}")
    return name


def same_model(name: str, other: str) -> bool:
    """Whether two values of `model.name` are one name or one folder."""
    folders = [Path(each).expanduser() for each in (name, other)]
    return name == other or (all(folder.is_dir() for folder in folders) and folders[0].samefile(folders[1]))
