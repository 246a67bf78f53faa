"""What a row of a dataset holds: columns inside columns, a problem as text or as messages, gold answers."""

from __future__ import annotations

import math
from typing import Any

from aer_train.types import Row

MISSING = object()
"""Not in the row at all, which null is."""


def column(row: Row, name: str) -> Any:
    """Return a value of a row. A name with dots reaches into columns: `reward_model.ground_truth`. MISSING where there is none."""
    if name in row:
        return row[name]
    head, _, rest = name.partition(".")
    inner = row.get(head)
    return column(inner, rest) if rest and isinstance(inner, dict) else MISSING


def column_names(row: Row, prefix: str = "") -> list[str]:
    """Return the names that `column` takes for the values of a row."""
    found: list[str] = []
    for name, value in sorted(row.items()):
        found += column_names(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [prefix + name]
    return found


def is_empty(value: Any) -> bool:
    """Whether a value stands for nothing: missing, null, NaN (what data frames make of null), or a list of nothing else."""
    if isinstance(value, list):
        return all(map(is_empty, value))
    return value is MISSING or value is None or (isinstance(value, float) and math.isnan(value))


def gold_answers(value: Any) -> tuple[str, ...] | None:
    """Return a gold answer as text, and its alternatives, each once. None for what is no answer, such as a table.

    Args:
        value: text, a finite number, or a list of them. A number with no fraction loses its point (27.0 is 27): columns of whole numbers
            are often stored as floats.
    """
    if isinstance(value, list):
        parts = [gold_answers(part) for part in value if not is_empty(part)]
        known = [part for part in parts if part is not None]
        return tuple(dict.fromkeys(text for part in known for text in part)) if known and len(known) == len(parts) else None
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return (str(value),)
    if isinstance(value, float) and math.isfinite(value):
        return (str(int(value)) if value.is_integer() else repr(value),)
    return None


def messages_of(value: Any) -> list[dict[str, Any]] | None:
    """Return a conversation that ends with its user, the keys of each message that are not null, contents as text; None for anything else.

    Contents in parts (`[{"type": "text", "text": ...}]`) are joined.
    """
    if not isinstance(value, list) or not value or not all(isinstance(part, dict) for part in value):
        return None
    found = [{**{k: v for k, v in message.items() if v is not None}, "content": _content(message.get("content"))} for message in value]
    whole = all(isinstance(message.get("role"), str) and message["content"] is not None for message in found)
    return found if whole and found[-1]["role"] == "user" else None


def _content(value: Any) -> str | None:
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        return "".join(part["text"] for part in value)
    return value if isinstance(value, str) else None
