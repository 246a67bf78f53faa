"""Files of rows: JSON lines, JSON, CSV and parquet, the first three also compressed. Whatever is wrong is told with the file's name."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

from aer_train.types import Row
from aer_train.unique import check_unique, unique_json

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSED = (".gz", ".bz2", ".zst")
"""Endings behind the others."""


def file_format(name: str | Path) -> str | None:
    """Return which of FORMATS a file has by its name (.jsonl for rows.jsonl.gz); None for other names."""
    suffixes = Path(name).suffixes
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
        if suffixes and suffixes[-1] == ".parquet":
            return None
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def read_file(path: Path) -> list[Row]:
    """Return the rows of a file in one of FORMATS. The cells of CSV are text; an empty one is None.

    Raises:
        ValueError - the file is not what its name says, or has a column or key twice; FileNotFoundError.
    """
    form = file_format(path)
    if form == ".parquet":
        return _read_parquet(path)
    text = _text(path)
    if form == ".csv":
        return _read_csv(path, text)
    if form == ".json" and text.lstrip().startswith("["):
        return _read_list(path, text)
    return _read_lines(path, text)


def _text(path: Path) -> str:
    """The text of a file, decompressed as its name says, without a byte order mark."""
    import pyarrow as pa

    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            data = stream.read()
    except FileNotFoundError:
        raise
    except OSError as error:  # as pyarrow tells of damage
        raise ValueError(f"{path} must be a file that can be read, got: {error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x} in line {line}"
        raise ValueError(f"{path} must be UTF-8, got {found}: convert it, for example with iconv") from error


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} must be a parquet file, got: {error}") from error


def _read_lines(path: Path, text: str) -> list[Row]:
    lines = [(f"{path} line {number}", line) for number, line in enumerate(text.split("\n"), 1)]  # no other character ends a line of JSON
    return [_object(_json(line, f"{place} must be a JSON object"), place) for place, line in lines if line.strip()]


def _read_list(path: Path, text: str) -> list[Row]:
    rows = _json(text, f"{path} must be a list of JSON objects, or one in each line")
    return [_object(row, f"row {number} of {path}") for number, row in enumerate(rows)]


def _json(text: str, rule: str) -> Any:
    try:
        return unique_json(text)
    except (ValueError, RecursionError) as error:  # too deep, or a number of too many digits
        raise ValueError(f"{rule}, got: {error}") from error


def _object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{place} must be a JSON object, got {type(value).__name__}")
    return value


def _read_csv(path: Path, text: str) -> list[Row]:
    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        check_unique(filter(None, reader.fieldnames or ()), f"column of {path}")  # spreadsheets leave empty columns without a name
        rows = []
        for row in reader:
            if None in row:
                raise ValueError(f"{path} line {reader.line_num} must have {len(reader.fieldnames or ())} cells, got {row}")
            rows.append({name: cell or None for name, cell in row.items()})
        return rows
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num} must be CSV, got: {error}") from error
    finally:
        csv.field_size_limit(limit)
