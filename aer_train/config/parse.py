"""From files and flags to a TrainConfig. A file is turned into the same flags, so that there is one way in and one set of checks."""

from __future__ import annotations

import contextlib
import io
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import tyro

from aer_train.config.method import with_method
from aer_train.config.presets import PRESETS
from aer_train.config.tree import TrainConfig
from aer_train.unique import unique_json, unique_yaml

T = TypeVar("T")


def parse(cls: type[T], prog: str, args: Sequence[str], default: T) -> T:
    """Parse flags into a dataclass.

    Raises:
        ValueError - an unknown flag or a bad value; SystemExit - help was asked for.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(cls, args=args, prog=prog, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_first_message(errors.getvalue())) from None


def base_config(config: Path | None, preset: str | None, run: Path | None) -> TrainConfig:
    """Return what the flags start from: a file, a preset, a run's own configuration, or the defaults.

    Raises:
        ValueError - more than one is given, or it cannot be read.
    """
    given = [name for name, value in (("--config", config), ("--preset", preset), ("--resume", run)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"at most one of --config, --preset and --resume must be given, got {' and '.join(given)}")
    if run is not None and (run / "state.json").is_file():  # its config.json is that of the model
        raise ValueError(f"--resume must name the run folder, {run.parent.parent}, got its checkpoint {run}")
    if run is not None and not (run / "config.json").is_file():
        raise ValueError(f"run folder must hold a config.json, got {run}")
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if preset is not None:
        return PRESETS[preset]()
    if run is not None:
        return read_config(run / "config.json")
    return TrainConfig() if config is None else read_config(config)


def read_config(path: Path) -> TrainConfig:
    """Read a configuration from a .toml, .json or .yaml file; what it leaves out has its default.

    Raises:
        ValueError - naming the file: missing, not readable, an unknown key, a key twice or a bad value.
    """
    try:
        tree = _read_tree(path)
        sections = [section.name for section in fields(TrainConfig)]
        for name in tree:
            if name not in sections:
                raise ValueError(f"section must be one of {', '.join(sections)}, got {name!r}")
        method = tree.get("method", {})
        start = with_method(TrainConfig(), method.get("kind") if isinstance(method, dict) else None)
        return parse(tyro.conf.FlagConversionOff[TrainConfig], str(path), flags(tree), start)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def flags(tree: dict[str, Any]) -> list[str]:
    """Return the flags that set every leaf of a nested dictionary: {"run": {"seed": 1}} -> ["--run.seed=1"]."""
    found: list[str] = []
    for name, value in leaves(tree):
        found += [f"--{name}", *map(str, value)] if isinstance(value, list | tuple) else [f"--{name}={value}"]
    return found


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a nested dictionary with its dotted name: {"run": {"seed": 1}} -> ("run.seed", 1)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _read_tree(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError("--config must name an existing file")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        tree = tomllib.loads(text)
    elif path.suffix == ".json":
        tree = unique_json(text)
    elif path.suffix in (".yaml", ".yml"):
        import yaml

        try:
            tree = unique_yaml(text) or {}
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
    else:
        raise ValueError("--config must end in .toml, .json, .yaml or .yml")
    if not isinstance(tree, dict):
        raise ValueError(f"--config must hold a table of settings, got {type(tree).__name__}")
    return tree


def _first_message(text: str) -> str:
    """Return what a box of tyro (drawn in Unicode or ASCII, title first) says, as one line: its first paragraph and first suggestion."""
    paragraphs: list[list[str]] = [[]]
    for line in text.strip().splitlines()[1:]:
        content = line.strip("│ ")
        if set(content) <= set("─-╰╯"):
            paragraphs.append([])
        else:
            paragraphs[-1].append(content)
    told = [paragraph for paragraph in paragraphs if paragraph]
    suggestion = next((p[1].split()[0] for p in told if p[0].startswith("Perhaps") and len(p) > 1), None)
    return " ".join(told[0]) + ("" if suggestion is None else f" (perhaps {suggestion})")
