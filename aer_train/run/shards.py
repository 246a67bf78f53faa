"""Reads a torch distributed checkpoint of tensors and nothing else. Its index is a pickle, which torch would let call anything."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

_INDEX = "Metadata TensorStorageMetadata TensorProperties ChunkStorageMetadata MetadataIndex StorageMeta _MEM_FORMAT_ENCODING"

PARTS = {
    "torch.distributed.checkpoint.metadata": _INDEX.split(),
    "torch.distributed.checkpoint.filesystem": ["_StorageInfo"],
    "torch.serialization": ["_get_layout"],
    "torch": ["Size"],
    "pathlib": ["PosixPath", "WindowsPath"],
    "pathlib._local": ["PosixPath", "WindowsPath"],  # Python 3.13
}
"""Every class and function of which the index of tensors is made, beside the dtypes."""


class TensorReader(FileSystemReader):
    """For `torch.distributed.checkpoint.load`. The tensors are read by torch's own loader of weights, which calls nothing either."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ValueError - the index has something else than tensors in it, or cannot be read; nothing of it has been called.
        """
        super().__init__(folder)
        file = folder / ".metadata"
        try:
            with file.open("rb") as stream:
                self._index = _Unpickler(stream).load()
            other = [name for name, kind in self._index.state_dict_metadata.items() if not isinstance(kind, TensorStorageMetadata)]
        except Exception as error:  # a garbled pickle may raise anything
            raise ValueError(f"{file} must be the index of a checkpoint, got: {error}") from error
        if other:
            raise ValueError(f"{file} must name tensors alone, got {other[0]}, for which torch would load a pickle")

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index, as it was read."""
        return self._index


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found: Any = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        if name not in PARTS.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is no part of it")
        return super().find_class(module, name)
