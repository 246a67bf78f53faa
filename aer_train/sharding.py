"""Parameters, gradients and optimizer state in shards over the processes (FSDP2): each decoder layer by itself, all the rest with the root.

A forward pass gathers a layer at a time, and all processes must make it together. Gradients are summed over the processes, in fp32 and
after every micro-batch: the loss already has the denominators of the whole update, and whole gradients would need four bytes a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from aer_train import dist

T = TypeVar("T")


def shard(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Cut the float32 parameters of a transformers model into shards, and move them (a layer at a time) to the device.

    Args:
        dtype: of the gathered parameters, which the products see.
    """
    mesh = init_device_mesh(device.type, (dist.world(),))
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in [*layers(model), model]:
        fully_shard(module, mesh=mesh, mp_policy=precision)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    model.call = lambda function: function()
    register_fsdp_forward_method(model, "call")


def layers(model: Any) -> list[Any]:
    """Return the decoder layers of a transformers model.

    Raises:
        ValueError - the model does not say what its layers are.
    """
    found = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    if not found:
        raise ValueError(f"model.name must be a model that names its layers (_no_split_modules), got {type(model).__name__}")
    return found


def is_sharded(model: Any) -> bool:
    """Whether `shard` was here."""
    return isinstance(model, FSDPModule)


def forward_pass(model: Any, function: Callable[[], T]) -> T:
    """Call `function` as the forward pass of the model: embedding and lm_head are whole inside, and get all their gradient, tied or not."""
    if not is_sharded(model):
        return function()
    result = model.call(function)
    if not torch.is_grad_enabled():
        model.reshard()  # otherwise the backward pass does it
    return result


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """All parameters whole on every process, so that each may make as many forward passes (without gradients) as it needs."""
    if not is_sharded(model):
        yield
        return
    modules = [module for module in model.modules() if is_sharded(module)]
    for module in modules:
        module.unshard()
    model.set_reshard_after_forward(False)
    try:
        yield
    finally:
        model.set_reshard_after_forward(True)
        model.set_reshard_after_forward(False, recurse=False)
        for module in modules:
            module.reshard()


def full_named_tensors(model: Any, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter, whole, with its name in the model; tied ones once. All processes must go through it together.

    Args:
        dtype: to send and return them in; None leaves them as they are, float32.
    """
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().to(parameter.dtype if dtype is None else dtype)
        yield name, whole(tensor)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that may be in shards, gathered."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
