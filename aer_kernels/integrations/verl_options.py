"""The options `+aer.NAME=VALUE` of a verl run, and what verl's own options must be beside them.

aer.method     kind of a method of `aer_kernels.methods` (default aer); every other name but the two below is an option of its own
aer.correct    which number says that a response is right: score (default), positive, or a field that the reward function returns
aer.head       whether log-probs and entropy come from `fused_logprobs`
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf, open_dict

from aer_kernels.entropy_control import BELOW_START
from aer_kernels.methods import check_method, method_class, method_for
from aer_kernels.methods.seam import moves

MODES = ("sync", "colocate_async", "separate_async")
"""Trainer modes that the adapter was written for."""

LINEAR = ("vanilla", "bypass_mode", "cispo", "dppo_kl", "dppo_tv", "gpg", "gspo", "sapo")
"""Loss modes in which a token's term is multiplied by what its advantage is multiplied by."""

CLIPPED = ("vanilla",)
"""Loss modes whose ratio has the bounds that `TokenTerms.clip_low`, `clip_high` and `dual_clip` mean."""

HEAD = "aer_kernels.integrations.verl_head"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What `+aer.*` says."""

    method: Any
    """Configuration of a method."""
    correct: str
    head: bool

    @property
    def on(self) -> bool:
        return getattr(self.method, "kind", None) != "off"


def read_options(given: Mapping[str, Any]) -> Options:
    """Return what `+aer.*` says.

    Raises:
        ValueError: an option is unknown or has a value that is not allowed.
        TypeError: a value has the wrong type.
    """
    rest = dict(given)
    correct, head = rest.pop("correct", "score"), rest.pop("head", False)
    if not isinstance(correct, str):
        raise TypeError(f"aer.correct must be a string, got {correct!r}")
    if not isinstance(head, bool):
        raise TypeError(f"aer.head must be true or false, got {head!r}")
    if not rest:
        logger.warning("no option of a method is given: BELOW_START adds nothing until entropy is below two fifths of its start")
        return Options(BELOW_START, correct, head)
    if "kind" in rest and "method" in rest:
        raise ValueError(f"aer.kind must be left out where aer.method is given, got {rest['kind']!r}")
    kind = rest.pop("method", None) or rest.pop("kind", "aer")
    if not isinstance(kind, str):
        raise TypeError(f"aer.method must be a string, got {kind!r}")
    return Options(_filled(method_class(kind).Config, {"kind": kind} | rest, "aer"), correct, head)


def _filled(config: type[Any], given: Mapping[str, Any], path: str) -> Any:
    """A configuration with these options; the parts of a combined method are mappings."""
    known = {field.name: field for field in fields(config)}
    values = dict[str, Any]()
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{path}.{name} must be one of the options {', '.join(known)}, got {value!r}")
        factory = known[name].default_factory
        default = factory() if callable(factory) else known[name].default
        if is_dataclass(default) and isinstance(value, Mapping):
            value = _filled(type(default), {"kind": getattr(default, "kind")} | dict(value), f"{path}.{name}")  # noqa: B009
        values[name] = tuple(value) if isinstance(value, list) else value
    return config(**values)


def prepare(config: Any) -> Options:
    """Check verl's options against those of `+aer.*`, and set the few that these need. Doing it again changes nothing.

    Args:
        config: verl's DictConfig. `actor.calculate_entropy` is set for a method with an entropy term, `model.use_fused_kernels` and
            `model.external_lib` for the head.
    Raises:
        ValueError, TypeError: an option is wrong; the message names it.
    """
    options = read_options(OmegaConf.to_container(config.get("aer") or OmegaConf.create({}), resolve=True))
    if not config.trainer.use_v1 or config.trainer.v1.trainer_mode not in MODES:
        mode = config.trainer.v1.trainer_mode if config.trainer.use_v1 else "the legacy trainer"
        raise ValueError(f"trainer.v1.trainer_mode must be one of {', '.join(MODES)} with trainer.use_v1=True, got {mode}")
    if config.get("distillation") and config.distillation.get("enabled", False):
        raise ValueError("distillation.enabled must be False with aer.*: its loss is another one, got True")
    with open_dict(config):
        if options.head:
            _prepare_head(config.actor_rollout_ref)
        if options.on:
            _prepare_method(config, options)
    return options


def _prepare_head(config: Any) -> None:
    model = config.model
    if config.actor.strategy not in ("fsdp", "fsdp2"):
        raise ValueError(f"aer.head must be false unless actor_rollout_ref.actor.strategy is fsdp or fsdp2, got {config.actor.strategy}")
    backend = (model.get("fused_kernel_options") or {}).get("impl_backend", "torch")
    if backend != "torch":
        raise ValueError(f"model.fused_kernel_options.impl_backend must be torch with aer.head=true, got {backend}")
    model.use_fused_kernels = config.actor.use_fused_kernels = True
    model.fused_kernel_options = {"impl_backend": "torch"}
    others = [model.external_lib] if isinstance(model.external_lib, str) else list(model.external_lib or [])
    model.external_lib = [HEAD, *(name for name in others if name != HEAD)]


def _prepare_method(config: Any, options: Options) -> None:
    actor = config.actor_rollout_ref.actor
    if actor.entropy_coeff != 0:
        raise ValueError(f"actor_rollout_ref.actor.entropy_coeff must be 0 with aer.* (or aer.kind=off), got {actor.entropy_coeff}")
    first = method_for(options.method, 1)
    if getattr(first, "reward_bonus", None) is not None:
        raise ValueError(f"aer.method must leave rewards to verl, got {options.method.kind}, which adds to them")
    check_method(first, given=frozenset(), on_policy=on_policy(config))
    if bypasses(config) and first.needs_entropy:
        raise ValueError(f"rollout_correction.bypass_mode must be False with aer.method={options.method.kind}, which needs entropies")
    loss, moved = actor.policy_loss.get("loss_mode", "vanilla"), moves(first)
    for names, allowed, what in (
        ({"weight", "shift"}, LINEAR, "weighs tokens"),
        ({"clip_low", "clip_high", "dual_clip"}, CLIPPED, "moves clip bounds"),
    ):
        if moved & names and loss not in allowed:
            raise ValueError(f"actor.policy_loss.loss_mode must be one of {', '.join(allowed)} for a method that {what}, got {loss}")
    if "entropy_coef" in moved:
        actor.calculate_entropy = True


def bypasses(config: Any) -> bool:
    """Whether verl takes the log-probs of the rollout for those of the old policy, and makes no pass of its own."""
    return bool((config.algorithm.get("rollout_correction") or {}).get("bypass_mode", False))


def batches_a_step(config: Any) -> int:
    """Batches that verl trains on in a global step; each is an update of the method."""
    mode = config.trainer.v1.trainer_mode
    return int((config.trainer.v1.get(mode) or {}).get("parameter_sync_step", 1))


def on_policy(config: Any) -> bool:
    """Whether every batch is used for one optimizer step alone, with ratios to the policy of that very step."""
    actor = config.actor_rollout_ref.actor
    prompts = config.data.train_batch_size // batches_a_step(config)
    return bool(actor.ppo_epochs == 1 and prompts <= actor.ppo_mini_batch_size and not bypasses(config))
