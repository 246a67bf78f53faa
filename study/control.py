"""How well a controller held its target, judged from outside: every controller by the same smoothing, whatever it uses itself."""

from __future__ import annotations

from dataclasses import dataclass

from study.records import Record

BAND = 0.2
"""Half-width of the band, relative to the target."""

SPAN = 5
"""Steps of the trailing mean that stands for the controlled entropy."""

OVERSHOOT = 1.5
"""Entropy above this multiple of the target is an overshoot that must not happen."""

IN_BAND = 0.8
"""Share of the steps after the first one in the band that must be in it."""


@dataclass(frozen=True)
class Response:
    """The step response of a run: entropy starts at H_0 and is to be held at the target below it."""

    reached: int | None
    """First step in the band; None when it never was."""
    in_band: float
    """Share of the steps from then on that are in the band; 0 when it was never reached."""
    largest: float
    """Largest entropy from then on, in targets."""
    smallest: float
    """Smallest entropy from then on, in targets."""

    @property
    def held(self) -> bool:
        """Whether this is what is asked of a controller."""
        return self.in_band >= IN_BAND and self.largest <= OVERSHOOT


def response(entropy: list[float], target: float) -> Response:
    """Return the step response of a curve of entropies, one a step."""
    smoothed = [value / target for value in trailing_mean(entropy)]
    inside = [abs(value - 1.0) <= BAND for value in smoothed]
    if True not in inside:
        return Response(None, 0.0, max(smoothed), min(smoothed))
    first = inside.index(True)
    after = smoothed[first:]
    return Response(first + 1, sum(inside[first:]) / len(after), max(after), min(after))


def response_of(record: Record, tau: float | None = None) -> Response:
    """Return the step response of a run to its own target, or to tau times its first entropy. A run that diverged holds nothing."""
    quantity = record["curves"][record.get("quantity", "entropy")]
    target = record["target"] if tau is None else tau * quantity[0]
    found = response(quantity, target)
    return found if record["diverged"] is None else Response(found.reached, 0.0, float("inf"), found.smallest)


def trailing_mean(values: list[float]) -> list[float]:
    """Return the mean of each value and those before it, SPAN in all."""
    return [sum(values[max(0, i + 1 - SPAN) : i + 1]) / min(SPAN, i + 1) for i in range(len(values))]
