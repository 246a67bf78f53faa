"""The options of a run as its records have them, and which of them belong to what its method moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from aer_kernels.entropy_control import AimConfig
from aer_kernels.entropy_control.config import Kind
from aer_kernels.methods import METHODS


class Options:
    """The configuration of a run as nested dictionaries; one of another version may lack an option."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def value(self, name: str) -> Any:
        """Return the value of an option, None when it is not there."""
        found: Any = self._config
        for key in name.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def lacks(self, name: str) -> bool:
        """Whether there is an option by this name, and it is None."""
        section, _, option = name.rpartition(".")
        return option in (self.value(section) or {}) and self.value(name) is None

    def now(self, name: str) -> str:
        """Return the option and its value, for a text."""
        value = self.value(name)
        return f"{name} (now {'its default' if value is None else value})"

    def moved(self) -> Moved:
        """Return what the method moves to hold entropy; of several methods at once the first that does."""
        section = self.value("method") or {}
        parts = {f"method.{name}": part for name, part in section.items() if isinstance(part, dict)} or {"method": section}
        for prefix, part in parts.items():
            config = getattr(METHODS.get(part.get("kind", "")), "Config", None)
            if config is not None and issubclass(config, AimConfig):
                return _moved(prefix, part)
        return _moved(*next(iter(parts.items())))


@dataclass(frozen=True)
class Moved:
    """What a method with a controller moves, and the options behind it by their full names."""

    kind: str
    name: str
    """In words."""
    bound: str | None
    """None: its bounds are fixed."""
    speed: str | None
    """None: how fast it moves is fixed."""
    prefix: str
    """Section of its options."""
    unit: str = "nats"
    """Of the entropy that is held."""

    @property
    def adapted(self) -> bool:
        """Whether anything is moved at all."""
        return self.kind not in ("off", "fixed")


def _moved(prefix: str, part: dict[str, Any]) -> Moved:
    kind = part.get("kind", "aer")
    if kind in get_args(Kind):
        gain = {"fixed": "coef", "bang_bang": "step", "integral": "ki"}.get(kind, "kp")
        return Moved(kind, "entropy coefficient", f"{prefix}.max_coef", f"{prefix}.{gain}", prefix)
    method = METHODS.get(kind)
    config = getattr(method, "Config", None)
    words = getattr(method, "MOVES", "number that the method moves").replace("_", " ")
    options = [getattr(config, name, None) for name in ("BOUND", "SPEED")]
    bound, speed = (None if option is None else f"{prefix}.{option}" for option in options)
    return Moved(kind, words, bound, speed, prefix, getattr(config, "UNIT", "nats"))
