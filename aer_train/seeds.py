"""Randomness as a function of names, never of a live generator: that is what makes resuming exact and batching irrelevant."""

from __future__ import annotations

import hashlib

import numpy as np


def sample_seed(*parts: int | str) -> int:
    """Return a 64-bit seed in [0, 2**64) that is the same in every process and on every platform.

    Args:
        parts: what the randomness belongs to, for example (run seed, step, prompt, sample). 1 and "1" are different parts.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(*parts: int | str) -> np.random.Generator:
    """Return a fresh generator that depends on all 64 bits of `sample_seed(*parts)`."""
    return np.random.Generator(np.random.Philox(key=sample_seed(*parts)))
