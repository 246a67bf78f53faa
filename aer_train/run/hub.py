"""The last checkpoint of a run on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from aer_train import ahead
from aer_train.run.card import model_card
from aer_train.run.checkpoint import RATES, latest

LEFT_OUT = ["optimizer/*", "state.json", RATES, ahead.FILE]
"""What only a resumed run needs."""


def open_repository(repository: str) -> None:
    """Prove that a repository can be written to; make a private one when there is none.

    Raises:
        ValueError - it cannot, or nobody is logged in.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().whoami()
        HfApi().create_repo(repository, private=True, exist_ok=True)
    except Exception as error:  # of whichever library the hub's client talks with
        raise ValueError(
            f"run.push_to_hub must name a repository that you may write to (log in: hf auth login), got {repository!r}: {_reason(error)}"
        ) from error


def push(run: Path, repository: str) -> str:
    """Upload the newest checkpoint of a run with its model card, and return its address.

    Raises:
        OSError - it could not be uploaded; it is complete on this machine.
    """
    from huggingface_hub import HfApi

    folder = latest(run)
    assert folder is not None, "a run ends with a checkpoint"
    try:
        commit = f"{folder.name} of a run of aer-rl"
        HfApi().upload_folder(repo_id=repository, folder_path=folder, commit_message=commit, ignore_patterns=LEFT_OUT)
        card = model_card(run, folder, repository).encode()
        HfApi().upload_file(repo_id=repository, path_or_fileobj=card, path_in_repo="README.md", commit_message="Model card")
    except Exception as error:
        raise OSError(
            f"{folder} must be uploaded to {repository}, got {_reason(error)}; push it again with: aer-train train --resume {run}"
        ) from error
    return f"https://huggingface.co/{repository}"


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
