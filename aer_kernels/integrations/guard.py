"""Checks that a library is one that an adapter was tested with: its version, and the functions that the adapter calls or overrides."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

from packaging.version import Version


def check_version(name: str, version: str, oldest: str, below: str | None, remedy: str) -> None:
    """Raise ImportError for a library that is older than `oldest`, or not older than `below`."""
    if Version(version) < Version(oldest) or (below is not None and Version(version) >= Version(below)):
        rule = f"{oldest} or newer" if below is None else f"at least {oldest} and below {below}"
        raise ImportError(f"{name} must be {rule}, got {version}: {remedy}")


def check_parameters(function: Callable[..., Any], expected: tuple[str, ...], option: str, library: str) -> None:
    """Raise ImportError where a function of a library does not take these arguments, after self or ctx, or needs others.

    Args:
        option: what needs the function, for the error.
        library: name and version.
    """
    found = [parameter for name, parameter in inspect.signature(function).parameters.items() if name not in ("self", "ctx")]
    names, further = [parameter.name for parameter in found], found[len(expected) :]
    needed = [x for x in further if x.default is x.empty and x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)]
    if tuple(names[: len(expected)]) != expected or needed:
        name = getattr(function, "__qualname__", function)
        raise ImportError(f"{option} must be used with a tested version: {name} takes ({', '.join(names)}) in {library}")


def looks_up(code: CodeType, name: str) -> bool:
    """Whether a function, or one inside it, looks up a global or an import of this name."""
    return name in code.co_names or any(looks_up(part, name) for part in code.co_consts if isinstance(part, CodeType))
