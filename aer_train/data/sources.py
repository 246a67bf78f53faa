"""Rows of a dataset, as they are stored: files, hub datasets at a known commit."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

from aer_train.data.files import FORMATS, file_format, read_file
from aer_train.types import Row

RULE = f"data must be a {', '.join(FORMATS)} file, a hub dataset id or builtin:TASK"


@dataclass(frozen=True)
class Table:
    """The rows of a dataset."""

    rows: list[Row]
    revision: str | None = None
    """Commit of a hub dataset; None for files."""


def read_table(source: str, split: str, revision: str | None) -> Table:
    """Return the rows of `source`.

    Args:
        source: file in one of `files.FORMATS`, a pattern of such files (`data/*.jsonl`, in the order of their names), or a hub dataset
            (`org/name` or `org/name:config`).
        split: of a hub dataset.
        revision: branch, tag or commit of a hub dataset; None is its default branch.
    Raises:
        ValueError - naming the source and what is wrong with it.
    """
    if file_format(source) is None:
        return _read_hub(source, split, revision)
    path = Path(source).expanduser()
    files = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path)))]
    if not files:
        raise ValueError(f"data must name an existing file, got {source}")
    rows = [row for file in files for row in read_file(file)]
    if not rows:
        raise ValueError(f"{source} must hold at least one row, got an empty dataset")
    return Table(rows)


def _read_hub(source: str, split: str, revision: str | None) -> Table:
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetNotFoundError

    name, _, config = source.partition(":")
    try:
        builder = load_dataset_builder(name, config or None, revision=revision)
        builder.download_and_prepare()
        rows = builder.as_dataset(split=split).to_list()
    except (DatasetNotFoundError, OSError, ValueError, RuntimeError, UnpicklingError) as error:  # scripts and pickles are not run
        reason = re.sub(r"(supported extension) \[.*", r"\1", str(error).strip().splitlines()[0])  # a hundred of them follow
        raise ValueError(f"{RULE}, got {source!r} (split {split!r}): {reason}") from error
    if not rows:
        raise ValueError(f"{source} must hold at least one row, got an empty dataset")
    commit = builder.hash if _is_commit(builder.hash) else None
    if revision is not None and _is_commit(revision) and commit != revision:  # without the hub, datasets takes whatever it has in its cache
        raise ValueError(f"{source} must be at revision {revision}, got {commit} from the cache: the hub could not be reached")
    return Table(rows, commit)


def _is_commit(text: str | None) -> bool:
    return text is not None and re.fullmatch(r"[0-9a-f]{40}", text) is not None
