"""How well entropy was held at its target: judged from outside, every controller by the same smoothing, whatever it uses itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BAND = 0.2
"""Half-width of the band around the target, relative."""

SPAN = 5
"""Steps of the trailing mean that is judged."""


@dataclass(frozen=True)
class StepResponse:
    """Of a run: entropy starts at H_0 and is to be held at the target."""

    reached: int | None
    """First step (1-based) in the band; None when it never was."""
    in_band: float
    """Share of the steps from then on that are in the band; 0 when it was never reached."""
    largest: float
    """Largest entropy from then on (of the whole run, when it was never reached), in targets."""
    smallest: float
    """Smallest entropy over the same steps, in targets."""


def held_entropy(row: Mapping[str, Any]) -> float | None:
    """Return the entropy that a step's controller held, nats: of a token or of a response. Older records have the first alone."""
    return row.get("entropy/controlled", row.get("entropy/mean"))


def step_response(entropy: Sequence[float], target: Sequence[float]) -> StepResponse:
    """Return how well a curve of entropies, one a step, followed its target.

    Args:
        entropy: at least one value, nats.
        target: as many, > 0.
    """
    relative = [value / aim for value, aim in zip(trailing_mean(entropy, SPAN), target, strict=True)]
    inside = [abs(value - 1.0) <= BAND for value in relative]
    if True not in inside:
        return StepResponse(None, 0.0, max(relative), min(relative))
    first = inside.index(True)
    after = relative[first:]
    return StepResponse(first + 1, sum(inside[first:]) / len(after), max(after), min(after))


def trailing_mean(values: Sequence[float], span: int) -> list[float]:
    """Return the mean of each value and those before it, up to `span` >= 1 in all."""
    return [sum(values[max(0, i + 1 - span) : i + 1]) / min(i + 1, span) for i in range(len(values))]
