"""Whether a controller held its target: every controller is judged by the same smoothing, whatever it uses itself."""

from __future__ import annotations

from aer_train.monitor.band import StepResponse, step_response
from study.records import Record

OVERSHOOT = 1.5
"""Entropy above this multiple of the target is an overshoot that must not happen."""

IN_BAND = 0.8
"""Share of the steps after the first one in the band that must be in it."""


def holds(found: StepResponse) -> bool:
    """Return whether this is what is asked of a controller."""
    return found.in_band >= IN_BAND and found.largest <= OVERSHOOT


def has_target(record: Record) -> bool:
    """Return whether the run had a target to hold."""
    return any(target is not None for target in record["curves"]["target"] or ())


def response_of(record: Record, phase: slice = slice(None)) -> StepResponse:
    """Return the step response of a run to its own target, over all or some of its steps. A run that diverged holds nothing."""
    return response_to(record, record, "controlled", phase)


def response_to(record: Record, other: Record, curve: str, phase: slice = slice(None)) -> StepResponse:
    """Return the same for a curve of a run and the target of another run."""
    pairs = zip(record["curves"][curve][phase], other["curves"]["target"][phase], strict=True)
    held = [pair for pair in pairs if pair[1] is not None]
    if not held:
        return StepResponse(None, 0.0, float("inf"), 0.0)
    found = step_response(*zip(*held, strict=True))
    return found if record["diverged"] is None else StepResponse(found.reached, 0.0, float("inf"), found.smallest)


def phases(record: Record) -> dict[str, slice]:
    """Return the steps with a constant target and those in which it moves; of a run whose target never moves there is one phase, ""."""
    targets = record["curves"]["target"]
    first = next((target for target in targets if target is not None), None)
    moved = next((step for step, target in enumerate(targets) if target not in (first, None)), None)
    return {"": slice(None)} if moved is None else {"constant target": slice(0, moved), "moving target": slice(moved, None)}
