"""Versions that a run was made with."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = (
    "aer-rl",
    "torch",
    "triton",
    "transformers",
    "vllm",
    "peft",
    "torchao",
    "liger-kernel",
    "datasets",
    "math-verify",
    "tyro",
    "numpy",
)


def versions() -> dict[str, str | None]:
    """Return Python's and the packages' versions; None for a package that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
