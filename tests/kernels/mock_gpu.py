"""A GPU that is not there: the whole library on meta tensors. Kernels are compiled for real, launches are recorded, nothing runs.

Meta tensors have shapes and no memory, so real sizes cost nothing, and reading one from the host is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import triton
from torch._library.custom_ops import OPDEFS
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}


class Launch(NamedTuple):
    """One recorded launch."""

    name: str
    grid: tuple[int, int, int]
    shared: int


class MockDriver(DriverBase):
    """What Triton's runtime asks of a driver."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.launches: list[Launch] = []
        self.utils = self
        launches = self.launches

        class Launcher:
            def __init__(self, source, metadata):
                self.metadata = metadata

            def __call__(self, x, y, z, *rest):
                launches.append(Launch(self.metadata.name, (x, y, z), self.metadata.shared))

        self.launcher_cls = Launcher

    def get_device_properties(self, device):
        return {"max_shared_mem": SHARED_LIMIT[self.target.arch], "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}

    def load_binary(self, name, kernel, shared, device):
        return object(), object(), 0, 0, 1024  # module, function, registers, spills, threads

    @classmethod
    def is_active(cls):
        return True

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_current_target(self):
        return self.target

    def get_active_torch_device(self):
        return torch.device("meta")

    def get_current_device(self):
        return 0

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device):
        return 0

    def get_device_capability(self, device=0):
        return divmod(self.target.arch, 10)

    def get_benchmarker(self):
        raise AssertionError("nothing is tuned at run time")


class Inside(TorchDispatchMode):
    """Runs the bodies of the operators, where meta tensors would only reach their shape functions, and adds up live memory."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.known: set[int] = set()
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aer_kernels":
            with self:
                return OPDEFS[func.name()]._init_fn(*args, **(kwargs or {}))
        self._note(args, inputs=True)
        out = func(*args, **(kwargs or {}))
        self._note(out if isinstance(out, (tuple, list)) else (out,), inputs=False)
        return out

    def _note(self, values, *, inputs):
        for x in values:
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                key = storage._cdata
                if inputs and key not in self.live:
                    self.known.add(key)  # made outside: not ours to count
                elif not inputs and key not in self.known:
                    self.live[key] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {k: v for k, v in self.live.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))


@contextmanager
def mock_gpu(capability: int, kernels: list[triton.JITFunction]) -> Iterator[tuple[MockDriver, Inside]]:
    """A GPU of this compute capability for the time of a with block."""
    mock, inside = MockDriver(capability), Inside()
    driver.set_active(mock)
    try:
        with inside:
            yield mock, inside
    finally:
        for kernel in kernels:
            kernel.device_caches.clear()
