"""Files that hold either their old or their new content, whatever happens."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from aer_train.types import Row


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that it holds either its old or its new content, whatever happens."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_parquet(path: Path, rows: list[Row], **options: Any) -> None:
    """Write rows with the same columns, atomically. A column of nothing but None is text, so that several files make one table.

    Args:
        options: of pyarrow's `write_table`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows)
    table = table.cast(pa.schema([field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in table.schema]))
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", **options)
    write_atomic(path, buffer.getvalue().to_pybytes())


def read_parquet(path: Path, columns: list[str] | None = None) -> list[Row]:
    """Return the rows of a parquet file, with some or all of their columns."""
    import pyarrow.parquet as pq

    return pq.read_table(path, columns=columns).to_pylist()


def num_rows(path: Path) -> int:
    """Return the number of rows of a parquet file."""
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


def eval_json(result: Row) -> str:
    """Return an evaluation as JSON: indented, with a line for each problem at the end."""
    text = json.dumps({name: value for name, value in result.items() if name != "problems"}, indent=2)
    if "problems" not in result:
        return text
    lines = ",\n    ".join(json.dumps(problem) for problem in result["problems"])
    return f'{text[:-2]},\n  "problems": [\n    {lines}\n  ]\n}}\n'


def read_json(path: Path) -> Row:
    """Return what a JSON file holds.

    Raises:
        ValueError - it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, got: {error}") from error
