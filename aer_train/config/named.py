"""Options that are lists of name=value: arguments for somebody else's code, whose names this one does not know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def named_values(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the values by name. A value is read as JSON (`false`, `8`), or else as text.

    Args:
        arguments: each name=value, checked by `is_named_value`.
    """
    return dict(map(_parsed, arguments))


def is_named_value(argument: str) -> bool:
    """Whether an argument has the form name=value."""
    return "=" in argument and argument.partition("=")[0].isidentifier()


def _parsed(argument: str) -> tuple[str, Any]:
    name, _, value = argument.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
