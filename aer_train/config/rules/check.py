"""How a rule of an option is told."""

from __future__ import annotations


def check(name: str, value: object, ok: bool, rule: str) -> None:
    """Raise ValueError, naming the option, unless the rule is kept."""
    if not ok:
        raise ValueError(f"{name} must {rule}, got {value}")
