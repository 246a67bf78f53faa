"""verl: its Triton kernel for log-probs and entropy, and its PyTorch version in chunks of 512 tokens."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import Tensor

from benchmarks.providers.base import Provider, Unavailable, load, need_gpu
from benchmarks.workloads import Case


def _load(module: str) -> Any:
    """A module of verl without its packages' __init__, which import a whole training stack."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("verl is not installed")
    folder = spec.submodule_search_locations[0]
    for name, path in (("verl", folder), ("verl.utils", f"{folder}/utils"), ("verl.utils.experimental", f"{folder}/utils/experimental")):
        if name not in sys.modules:
            package = ModuleType(name)
            package.__path__ = [path]
            package.__spec__ = ModuleSpec(name, None, is_package=True)
            package.__spec__.submodule_search_locations = [path]
            sys.modules[name] = package
    return load(module)


def _kernel(case: Case) -> Callable[[], tuple[Tensor, Tensor]]:
    need_gpu(case, "its Triton kernel")
    function = _load("verl.utils.kernel.linear_cross_entropy").linear_cross_entropy
    return lambda: function(case.hidden, case.weight, case.targets, 1.0, "none")


def _torch(case: Case) -> Callable[[], tuple[Tensor, Tensor]]:
    fused = _load("verl.utils.experimental.torch_functional").FusedLinearForPPO(impl_backend="torch")
    return lambda: fused(case.hidden, case.weight, case.targets, 1.0)


VERL_KERNEL = Provider("verl kernel", "verl", _kernel, True, differs="loss in plain PyTorch on its log-probs; needs D % 128 == 0")
VERL_TORCH = Provider(
    "verl torch", "verl", _torch, True, differs="loss in plain PyTorch on its log-probs; gradients summed in the input's dtype"
)
