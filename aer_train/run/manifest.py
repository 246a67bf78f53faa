"""What the files of a folder were when they were written, so that damage is found before anybody goes on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

Manifest = dict[str, str]
"""File, relative to its folder: bytes and BLAKE2b digest, as text."""

THREADS = 4
"""Hashing leaves Python's lock."""


def describe(folder: Path, files: Iterable[Path]) -> Manifest:
    """Return the manifest of these files below `folder`."""
    paths = sorted(files)
    with ThreadPoolExecutor(THREADS) as threads:
        return {path.relative_to(folder).as_posix(): text for path, text in zip(paths, threads.map(_describe, paths), strict=True)}


def damage(folder: Path, manifest: Manifest) -> str | None:
    """Return what is wrong with the files of a folder, or None when they are as the manifest has them."""
    for name, text in manifest.items():
        path, size = folder / name, int(text.split()[0])
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    found = describe(folder, (folder / name for name in manifest))
    return next((f"{name} has another content than was written" for name in manifest if found[name] != manifest[name]), None)


def _describe(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        return f"{file.tell()} {digest.hexdigest()}"
