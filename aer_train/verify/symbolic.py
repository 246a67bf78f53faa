"""Symbolic equality of two answers, by math-verify. Called in the pool's processes only: it may hang, and it may eat memory."""

from __future__ import annotations

import logging

from math_verify import parse, verify

logging.disable(logging.WARNING)  # math-verify warns at every call that its own timeouts are off


def equal(answer: str, gold: str) -> str:
    """Return correct, wrong or gold_unparseable. No timeouts of its own: the parent has the clock."""
    expected = parse(f"${gold}$", parsing_timeout=None)
    if not [e for e in expected if not isinstance(e, str)]:
        return "gold_unparseable"
    found = parse(f"${answer}$", parsing_timeout=None)
    return "correct" if found and verify(expected, found, timeout_seconds=None) else "wrong"
