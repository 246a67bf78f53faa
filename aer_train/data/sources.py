"""Rows of a dataset, as they are stored: JSONL and parquet files, hub datasets at a known commit."""

from __future__ import annotations

import glob
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

FORMATS = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Table:
    """The rows of a dataset."""

    rows: list[Row]
    revision: str | None = None
    """Commit of a hub dataset; None for files."""


def read_table(source: str, split: str, revision: str | None) -> Table:
    """Return the rows of `source`.

    Args:
        source: .jsonl or .parquet file, a pattern of such files (`data/*.jsonl`, in the order of their names), or a hub dataset
            (`org/name` or `org/name:config`).
        split: of a hub dataset.
        revision: branch, tag or commit of a hub dataset; None is its default branch.
    Raises:
        ValueError - naming the source and what is wrong with it.
    """
    if Path(source).suffix not in FORMATS:
        return _read_hub(source, split, revision)
    path = Path(source).expanduser()
    files = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path)))]
    if not files:
        raise ValueError(f"data must name an existing file, got {source}")
    rows = [row for file in files for row in (_read_parquet(file) if file.suffix == ".parquet" else _read_jsonl(file))]
    if not rows:
        raise ValueError(f"{source} must hold at least one row, got an empty dataset")
    return Table(rows)


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} must be a parquet file, got: {error}") from error


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} line {number} must be a JSON object, got: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path} line {number} must be a JSON object, got {type(row).__name__}")
            rows.append(row)
    return rows


def _read_hub(source: str, split: str, revision: str | None) -> Table:
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetNotFoundError

    name, _, config = source.partition(":")
    try:
        builder = load_dataset_builder(name, config or None, revision=revision)
        builder.download_and_prepare()
        rows = builder.as_dataset(split=split).to_list()
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"data must be a .jsonl or .parquet file, a hub dataset id or builtin:TASK, got {source!r} (split {split!r}): {reason}"
        ) from error
    if not rows:
        raise ValueError(f"{source} must hold at least one row, got an empty dataset")
    commit = builder.hash if _is_commit(builder.hash) else None
    if revision is not None and _is_commit(revision) and commit != revision:  # without the hub, datasets takes whatever it has in its cache
        raise ValueError(f"{source} must be at revision {revision}, got {commit} from the cache: the hub could not be reached")
    return Table(rows, commit)


def _is_commit(text: str | None) -> bool:
    return text is not None and re.fullmatch(r"[0-9a-f]{40}", text) is not None
