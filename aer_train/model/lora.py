"""Low-rank adapters by PEFT: a frozen model whose linear layers become W + (alpha / rank) B A. Only A and B are trained.

The layers are PEFT's own. Here is what a trainer needs beside them: adapters that are told apart from the model, a folder that PEFT and
transformers load, and whole weights for whoever serves the policy. Those are summed as they are sent, so that the model is never touched.

Source: arXiv:2106.09685.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aer_train import sharding
from aer_train.config.tree import ModelConfig
from aer_train.model.source import model_source

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of an adapter, as PEFT names them."""

PARTS, PREFIX = (".lora_A.default.", ".lora_B.default."), "base_model.model."
"""How PEFT marks an adapter in the names of a model's parameters, and where its files have the model."""


def has_adapters(model: Any) -> bool:
    """Whether `add_adapters` was here."""
    return hasattr(model, "peft_config")


def add_adapters(model: Any, config: ModelConfig, seed: int = 0) -> None:
    """Put adapters into a model, in place; all else is frozen. B begins at 0: the policy is the model's until the first step.

    Args:
        seed: of A.
    Raises:
        ImportError - PEFT is not installed; ValueError - the targets are not layers that can be adapted.
    """
    if importlib.util.find_spec("peft") is None:
        raise ImportError('model.lora_rank > 0 needs: pip install "aer-rl[lora]"')
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear

    every = config.lora_targets == ("all-linear",)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    options = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules="all-linear" if every else list(config.lora_targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=_where(config.name),
        revision=config.revision,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(options, model)
    except ValueError as error:
        raise ValueError(f"model.lora_targets must name linear layers of {config.name!r}, got {_told(config)}: {error}") from error
    layers = dict(_adapted(model))
    for target in () if every else config.lora_targets:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise ValueError(f"model.lora_targets must name linear layers of {config.name!r}, got {target}")
    if any(layer.get_base_layer() in (head, embedding) for layer in layers.values()):
        raise ValueError(f"model.lora_targets must leave out lm_head and embedding, got {_told(config)}")
    other = next((name for name, layer in layers.items() if not isinstance(layer, Linear)), None)
    if other is not None:
        raise ValueError(f"model.lora_targets must name linear layers of {config.name!r}, got {other}")


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Context in which the model is the one that was adapted."""
    layers = [layer for _, layer in _adapted(model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def adapter_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the adapters, whole, by its name in PEFT's files. All processes must go through it together."""
    for name, parameter in model.named_parameters():
        if _is_adapter(name):
            yield _file_name(name), sharding.whole(parameter.detach())


def served_parameters(model: Any) -> Iterator[tuple[str, nn.Parameter, Any]]:
    """Yield the parameters of the model without adapters, by their names there, each with its adapted layer or None."""
    layers = dict(_adapted(model))
    for name, parameter in model.named_parameters():
        owner, found, leaf = name.rpartition(".base_layer.")
        if not _is_adapter(name):
            yield (f"{owner}.{leaf}", parameter, layers[owner] if leaf == "weight" else None) if found else (name, parameter, None)


def served_tensors(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter, whole, by its name in the model without adapters, with its adapter added in float32.

    All processes must go through it together.

    Args:
        dtype: to return them in.
    """
    if not has_adapters(model):
        yield from sharding.full_named_tensors(model, dtype)
        return
    for name, parameter, layer in served_parameters(model):
        weight = sharding.whole(parameter.detach())
        yield name, (weight if layer is None else weight + _product(layer)).to(dtype)


def save_adapters(model: Any, weights: dict[str, Tensor], folder: Path) -> None:
    """Write the adapters as PEFT does.

    Args:
        weights: of `adapter_tensors`.
    """
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    model.peft_config["default"].save_pretrained(folder)


def load_adapters(model: Any, folder: Path) -> None:
    """Read the adapters of a model, not yet in shards, from a folder.

    Raises:
        ValueError - they are not those of this model with these options; OSError, SafetensorError - they cannot be read.
    """
    from safetensors.torch import load_file

    if not (folder / CONFIG).is_file():
        raise ValueError(f"model.lora_rank must be 0 for a run that began without adapters, got {folder}")
    found, ours = load_file(folder / WEIGHTS), {_file_name(n): p for n, p in model.named_parameters() if _is_adapter(n)}
    options, written = model.peft_config["default"], json.loads((folder / CONFIG).read_text())
    same = {n: x.shape for n, x in found.items()} == {n: p.shape for n, p in ours.items()}
    if not same or written["lora_alpha"] != options.lora_alpha:
        raise ValueError(f"model.lora_rank, lora_alpha and lora_targets must be those of {folder}, got others")
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(found[name])


def base_of(config: ModelConfig) -> ModelConfig:
    """Return the options with the name of the model that the adapters in a folder are for; as they are, where there are none."""
    found = adapted_model(config.name)
    return config if found is None else replace(config, name=found[1].name, revision=found[1].revision)


def adapted_model(name: str) -> tuple[Path, ModelConfig] | None:
    """Return, for a folder with adapters, the folder and the model that they are for with their options; None for anything else.

    Raises:
        ValueError - they are of another kind than this trainer's.
    """
    folder = Path(name).expanduser()
    if not (folder / CONFIG).is_file():
        return None
    try:
        options = json.loads((folder / CONFIG).read_text())
        base, targets = options["base_model_name_or_path"], options["target_modules"]
        plain = options["peft_type"] == "LORA" and options.get("bias", "none") == "none" and not options.get("use_dora")
        plain = plain and not any(options.get(key) for key in ("use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern"))
        config = ModelConfig(base, options.get("revision"), lora_rank=options["r"], lora_alpha=options["lora_alpha"])
        config = replace(config, lora_targets=(targets,) if isinstance(targets, str) else tuple(targets))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"model.name must be a folder with a readable {CONFIG}, got {name!r}: {error}") from error
    if not plain or not isinstance(base, str):
        raise ValueError(f"model.name must be a model, or plain LoRA adapters with their base, got {name!r}")
    return folder, config


@torch.no_grad()
def fold_adapters(model: Any) -> None:
    """Add the adapters to the weights, and take their layers out, in place."""
    for name, layer in list(_adapted(model)):
        base = layer.get_base_layer()
        base.weight += _product(layer)
        model.set_submodule(name, base)
    del model.peft_config
    model.requires_grad_(True)


def _adapted(model: Any) -> Iterator[tuple[str, Any]]:
    """The adapted layers by their names in the model without adapters."""
    if not has_adapters(model):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))


@torch.no_grad()
def _product(layer: Any) -> Tensor:
    """(alpha / rank) B A, whole, laid out as the layer's weight."""
    a, b = (sharding.whole(getattr(layer, part)["default"].weight.detach()) for part in ("lora_A", "lora_B"))
    product = (b @ a) * layer.scaling["default"]
    return product.T if layer.fan_in_fan_out else product


def _is_adapter(name: str) -> bool:
    return any(part in name for part in PARTS)


def _file_name(name: str) -> str:
    return PREFIX + name.replace(".default.", ".")


def _where(name: str) -> str:
    """A model's name, from any folder of this machine."""
    folder = Path(model_source(name))
    return name if name.startswith("builtin:") or not folder.is_dir() else str(folder.resolve())


def _told(config: ModelConfig) -> str:
    return ", ".join(config.lora_targets)
