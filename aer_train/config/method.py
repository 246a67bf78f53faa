"""The method of a run: which options it has, and the method itself."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from aer_kernels.methods import Method, method_class, method_for
from aer_kernels.methods.seam import also_needs
from aer_train.config.tree import TrainConfig
from aer_train.names import import_named

GIVEN = frozenset({"prompt_logprobs", "text", "current_entropy", "reference_entropy", "kept_entropy", "mean_surprise", "statistic"})
"""The optional fields of `TokenBatch` that this trainer fills for a method that needs them."""


def with_method(config: TrainConfig, kind: str | None) -> TrainConfig:
    """Return the configuration with the options of a kind of method, each at its default unless it has them already; None: as it is.

    Raises:
        ValueError: there is no such kind.
    """
    if kind is None:
        return config
    for path in kind.split("+"):
        with suppress(ImportError, ValueError):  # the next line says what is wrong with it
            import_named(path)
    options = method_class(kind).Config
    if isinstance(config.method, options):
        return replace(config, method=replace(config.method, kind=kind))
    return replace(config, method=options(kind=kind))


def method_of(config: TrainConfig) -> Method:
    """Return the method of a run in its first state; whatever options have `updates` are told how many there will be.

    Raises:
        ValueError: its options do not go together, or one that has no default is missing.
    """
    return method_for(config.method, config.run.steps)


def needs_reference(config: TrainConfig) -> bool:
    """Whether a run scores its samples with the policy that it began with: for a KL penalty, or for its method.

    Raises:
        ValueError: as `method_of`.
    """
    return bool(config.objective.kl_coef) or "reference_entropy" in also_needs(method_of(config))
