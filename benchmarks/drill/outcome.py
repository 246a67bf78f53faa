"""What became of a fault."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["same final state", "clear refusal", "clear refusal, then same final state", "not tried", "FAILED"]


@dataclass
class Outcome:
    """One fault: what was done to the run, what happened, and what that amounts to."""

    fault: str
    happened: list[str] = field(default_factory=list)
    """In order, a sentence each."""
    verdict: Verdict = "FAILED"
    seconds: float = 0.0


class Broken(Exception):
    """A run did not stand a fault."""


def expect(ok: bool, expected: str, got: object) -> None:
    """Raise Broken unless ok."""
    if not ok:
        raise Broken(f"expected {expected}, got {got}")
