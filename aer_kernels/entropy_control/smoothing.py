"""How noisy measurements are smoothed."""

from __future__ import annotations


def smoothed(old: float, new: float, ema: float, updates: int) -> float:
    """Return the exponential mean after `new`, which is the plain mean of all until there are enough for `ema`.

    Args:
        old: what this returned before; any number at the first update.
        ema: weight of the past, in [0, 1).
        updates: measurements so far, `new` included.
    """
    keep = min(ema, (updates - 1) / updates)
    return keep * old + (1 - keep) * new
