"""Whether a controller held its target: every controller is judged by the same smoothing, whatever it uses itself."""

from __future__ import annotations

from aer_train.band import StepResponse, step_response
from study.records import Record

OVERSHOOT = 1.5
"""Entropy above this multiple of the target is an overshoot that must not happen."""

IN_BAND = 0.8
"""Share of the steps after the first one in the band that must be in it."""


def holds(found: StepResponse) -> bool:
    """Return whether this is what is asked of a controller."""
    return found.in_band >= IN_BAND and found.largest <= OVERSHOOT


def response_of(record: Record, tau: float | None = None) -> StepResponse:
    """Return the step response of a run to its own target, or to tau times its first entropy. A run that diverged holds nothing."""
    quantity = record["curves"][record.get("quantity", "entropy")]
    target = record["target"] if tau is None else tau * quantity[0]
    found = step_response(quantity, [target] * len(quantity))
    return found if record["diverged"] is None else StepResponse(found.reached, 0.0, float("inf"), found.smallest)
