"""Every kind of method by name, and how a method is made of its options."""

from __future__ import annotations

import json
from dataclasses import field, fields, is_dataclass, make_dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any, get_args

from aer_kernels.entropy_control.config import Kind
from aer_kernels.methods.adapo import Adapo
from aer_kernels.methods.aent import AEnt
from aer_kernels.methods.aer import AER
from aer_kernels.methods.ares import Ares
from aer_kernels.methods.arm import ARM
from aer_kernels.methods.asking import restore, saved
from aer_kernels.methods.clip_cov import ClipCov
from aer_kernels.methods.combined import Combined
from aer_kernels.methods.entrocraft import Entrocraft
from aer_kernels.methods.entropic import EntroPIC
from aer_kernels.methods.entropy_advantage import EntropyAdvantage
from aer_kernels.methods.epo import EPO
from aer_kernels.methods.erc import ERC
from aer_kernels.methods.forking_tokens import ForkingTokens
from aer_kernels.methods.kl_cov import KLCov
from aer_kernels.methods.mai_clip import MAIClip
from aer_kernels.methods.pepo import PEPO
from aer_kernels.methods.positive_advantage import PositiveAdvantage
from aer_kernels.methods.relax import Relax
from aer_kernels.methods.repo_r import RepoR
from aer_kernels.methods.seam import INERT, Method, also_needs, moves
from aer_kernels.methods.siren import SIREN
from aer_kernels.methods.stare import Stare
from aer_kernels.methods.steer import Steer
from aer_kernels.methods.token_targets import TokenTargets

METHODS: dict[str, type[Any]] = {
    **dict.fromkeys(get_args(Kind), AER),
    "adapo": Adapo,
    "aent": AEnt,
    "ares": Ares,
    "arm": ARM,
    "clip_cov": ClipCov,
    "entrocraft": Entrocraft,
    "entropic": EntroPIC,
    "entropy_advantage": EntropyAdvantage,
    "epo": EPO,
    "erc": ERC,
    "forking_tokens": ForkingTokens,
    "kl_cov": KLCov,
    "mai_clip": MAIClip,
    "pepo": PEPO,
    "positive_advantage": PositiveAdvantage,
    "relax": Relax,
    "repo_r": RepoR,
    "siren": SIREN,
    "stare": Stare,
    "steer": Steer,
    "token_targets": TokenTargets,
}
"""The class of each kind."""


def method_class(kind: str) -> type[Any]:
    """Return the class of a kind of METHODS, the one that a dotted path names, or for "a+b" one that combines these.

    Raises:
        ValueError: there is none, or it is not a method.
    """
    if kind in METHODS:
        return METHODS[kind]
    if "+" in kind:
        return _combined(kind)
    module, _, name = kind.rpartition(".")
    known = f"one of {', '.join(METHODS)}, several of them joined by +, or a dotted path to a class"
    if not module:
        raise ValueError(f"kind must be {known}, got {kind!r}")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"kind must be {known}, got {kind!r}: {error}") from error
    missing = [
        part
        for part in ("Config", "needs_entropy", "terms", "update", "status", "state_dict", "load_state_dict")
        if not hasattr(found, part)
    ]
    if missing:
        raise ValueError(f"kind must name a method, got {kind!r} without {', '.join(missing)}")
    if not is_dataclass(found.Config) or "kind" not in {option.name for option in fields(found.Config)}:
        raise ValueError(f"kind must name a method whose Config is a dataclass with a field kind, got {kind!r}")
    return found


def make_method(config: Any) -> Method:
    """Return the method of a configuration, in its first state.

    Raises:
        ValueError: `config.kind` names no method, the configuration is that of another one, or an option that has no default is missing.
    """
    if not isinstance(getattr(config, "kind", None), str):
        raise ValueError(f"config must have a field kind, which names its method, got {type(config).__name__}")
    found = method_class(config.kind)
    if not isinstance(config, found.Config):
        raise ValueError(f"config must be a {found.Config.__name__} for kind {config.kind!r}, got {type(config).__name__}")
    return found(config)


def method_for(config: Any, updates: int) -> Method:
    """Return the method of a configuration in its first state; whatever options have `updates` open are told how many there will be.

    Raises:
        ValueError: as for `make_method`.
    """
    return make_method(_with_updates(config, updates))


def _with_updates(options: Any, updates: int) -> Any:
    if not is_dataclass(options) or isinstance(options, type):
        return options
    parts = {field.name: getattr(options, field.name) for field in fields(options)}
    filled = {name: _with_updates(part, updates) for name, part in parts.items() if is_dataclass(part)}
    return replace(options, **filled, **({"updates": updates} if parts.get("updates", 0) is None else {}))


def check_method(method: Method, *, given: frozenset[str], on_policy: bool) -> None:
    """Check that a method, or each of several at once, can do something in a trainer, and be saved, before anything runs.

    Args:
        given: the names of the optional fields of `TokenBatch`, beside entropy, that the trainer can fill.
        on_policy: whether every batch is used for one update alone, so that all ratios are 1.
    Raises:
        ValueError: the trainer lacks what the method needs, all that the method moves would do nothing there, `terms` changes the state, or
            the state is nothing that JSON gives back. TypeError: `terms` or `state_dict` gives something else.
    """
    before = json.dumps(saved(method))
    restore(method, json.loads(before))
    for part in method.parts.values() if isinstance(method, Combined) else [method]:
        name, needed, found = type(part).__name__, also_needs(part), moves(part)
        if needed - given:
            raise ValueError(f"method must need what this trainer has, got {name}, which needs {', '.join(sorted(needed - given))}")
        if on_policy and found and (found <= INERT or "current_entropy" in needed):
            what = ", ".join(sorted(found))
            raise ValueError(
                f"{name} must have more than one update on each batch: with one all ratios are 1, and its {what} would do nothing"
            )
    if json.dumps(saved(method)) != before:
        raise ValueError(f"{type(method).__name__}.terms must not change the state, got another state_dict after it")


@cache
def _combined(kind: str) -> type[Any]:
    """The class of kind "a+b": its Config has the options of each part under the part's name, the last word of a dotted path."""
    paths = kind.split("+")
    parts = {path.rpartition(".")[2]: (path, method_class(path).Config) for path in paths}
    if len(parts) < len(paths):
        raise ValueError(f"kind must name each method once, got {kind!r}")

    def default(path: str, options: type[Any]) -> Any:
        return field(default_factory=lambda: options(kind=path))

    options = [(name, config, default(path, config)) for name, (path, config) in parts.items()]

    class Together(Combined):
        Config = make_dataclass("CombinedConfig", [("kind", str, kind), *options], frozen=True)
        needs_entropy = False

        def __init__(self, config: Any) -> None:
            super().__init__({name: make_method(getattr(config, name)) for name in parts})

    return Together
