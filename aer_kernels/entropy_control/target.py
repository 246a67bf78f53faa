"""Initial-anchored target: what entropy is held at, step by step."""

from __future__ import annotations

from aer_kernels.entropy_control.config import EntropyControlConfig


def target_entropy(config: EntropyControlConfig, initial: float, updates: int) -> float:
    """Return H* in nats (C2), moved by (C8).

    Args:
        initial: H_0, nats.
        updates: of the controller so far.
    """
    start = config.tau * initial if config.target is None else config.target
    if config.tau_end is None:
        return start
    assert config.updates is not None, "checked by the controller"
    moved = min(1.0, max(0.0, updates / config.updates - config.hold) / (1.0 - config.hold))
    return start * (1.0 + (config.tau_end / config.tau - 1.0) * moved)
