"""How the policy's weights get to vLLM servers. Every training process takes part, for each may hold a share of them; the main one sends.

disk    a folder that the servers see, which their workers read (`vllm_worker.PolicyWeights`): works everywhere, and is the slowest
ipc     vLLM's weight-transfer API over the memory of shared GPUs; its handles are pickles, which only go over a Unix socket
nccl    vLLM's weight-transfer API over NCCL, from the main process to all workers of all servers

Of the last two, the order of calls and what they carry is tested on a CPU, against vLLM's own classes. They have not run on GPUs yet.
"""

from __future__ import annotations

import base64
import importlib.util
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from aer_train import dist
from aer_train.model import Policy
from aer_train.model.lora import served_parameters, served_tensors
from aer_train.rollout.http import UNIX, call, concurrently

CONTROL_TIMEOUT = 1800.0
"""Seconds that a server may take to load weights, wake up or answer anything that is not a request for a sample."""


class Transfer(Protocol):
    """A way to bring new weights to the servers; made once the servers are there."""

    def send(self) -> None:
        """Bring the servers' weights up to date. All training processes must call it together."""

    def close(self) -> None:
        """Give back what it holds."""


def tell_all(urls: Sequence[str], path: str, body: Any = None) -> list[Any]:
    """Post the same to every server at once, and return their answers in order.

    Raises:
        ConnectionError - one of them refuses, or cannot be reached; TimeoutError.
    """
    answers = dict(concurrently([partial(call, url + path, body, timeout=CONTROL_TIMEOUT) for url in urls], len(urls)))
    return [answers[place] for place in range(len(urls))]


class DiskTransfer:
    """Weights go over a folder that trainer and servers both see."""

    def __init__(self, policy: Policy, urls: Sequence[str], folder: Path) -> None:
        self.policy, self.urls, self.folder = policy, urls, folder.absolute()

    def send(self) -> None:
        """Write, and have it read."""
        weights = {n: t.cpu().contiguous() for n, t in served_tensors(self.policy.model, self.policy.dtype) if dist.is_main()}
        dist.from_main(lambda: self._load(weights))

    def close(self) -> None:
        """Remove the folder."""
        if dist.is_main():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _load(self, weights: dict[str, Tensor]) -> None:
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, self.folder / "model.safetensors")
        tell_all(self.urls, "/collective_rpc", {"method": "load_policy", "kwargs": {"folder": str(self.folder)}})


class EngineTransfer:
    """Weights go by vLLM's own weight transfer, whose trainer side runs in this process."""

    def __init__(self, backend: str, policy: Policy, urls: Sequence[str]) -> None:
        """
        Args:
            backend: ipc or nccl.
        Raises:
            ImportError - vLLM is not installed here; ValueError - ipc, and a server that is not on a Unix socket.
        """
        if backend == "ipc" and not all(url.startswith(f"{UNIX}://") for url in urls):
            raise ValueError(f"vllm.weight_transfer ipc must go over Unix sockets, as it sends pickles, got {', '.join(urls)}")
        if importlib.util.find_spec("vllm") is None:
            raise ImportError(f'vllm.weight_transfer {backend} needs, beside the servers: pip install "aer-rl[vllm]"')
        self._engine = (_ipc_engine if backend == "ipc" else _nccl_engine)(Servers(urls), PolicySource(policy))

    def send(self) -> None:
        """Send."""
        self._engine.send_weights()

    def close(self) -> None:
        """Leave the communicators."""
        self._engine.shutdown()


class PolicySource:
    """The policy's parameters for vLLM (its `WeightSource`), in the dtype that they are sent in."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def metadata(self) -> list[Any]:
        """Name, dtype and whole shape of every parameter, in the order of iteration."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, self.policy.dtype, tuple(p.shape)) for name, p, _ in served_parameters(self.policy.model)]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return served_tensors(self.policy.model, self.policy.dtype)


class Servers:
    """Several servers as one for vLLM's trainer side (its `VLLMWeightSyncClient`)."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = urls
        self._sizes: list[int] | None = None

    @property
    def sizes(self) -> list[int]:
        """Workers of each server."""
        if self._sizes is None:
            self._sizes = [call(f"{url}/get_world_size", post=False, timeout=CONTROL_TIMEOUT)["world_size"] for url in self.urls]
        return self._sizes

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each server's workers come after those of the servers before it."""
        bodies = [{"init_info": dict(init_info)} for _ in self.urls]
        if "rank_offset" in init_info:
            for place, body in enumerate(bodies):
                body["init_info"]["rank_offset"] += sum(self.sizes[:place])
        jobs = [
            partial(call, f"{url}/init_weight_transfer_engine", body, timeout=CONTROL_TIMEOUT)
            for url, body in zip(self.urls, bodies, strict=True)
        ]
        dict(concurrently(jobs, len(jobs)))

    def start_weight_update(self) -> None:
        """On all."""
        tell_all(self.urls, "/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        """On all, at once: they receive together."""
        handles = update_info.pop("ipc_handles", None)
        if handles is not None:
            update_info["ipc_handles_pickled"] = base64.b64encode(pickle.dumps(handles)).decode()
        tell_all(self.urls, "/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """On all."""
        tell_all(self.urls, "/finish_weight_update", None if weight_version is None else {"weight_version": weight_version})


def _ipc_engine(servers: Servers, source: PolicySource) -> Any:
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    info = IPCTrainerInitInfo(rank=dist.rank(), packed=True)  # in chunks: a whole copy need not fit beside the policy
    return WeightTransferTrainerFactory.trainer_init(info, client=servers, source=source)


def _nccl_engine(servers: Servers, source: PolicySource) -> Any:
    """As vLLM's own `trainer_init`, but the communicator's id goes with the request: there, workers unpickle it from an open TCP port."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    engine = NCCLTrainerWeightTransferEngine(client=servers, source=source, is_sender=dist.is_main())
    dist.from_main(lambda: _join(engine, servers))
    return engine


def _join(engine: Any, servers: Servers) -> None:
    """Make the communicator of this process, number 0, and the workers of all servers."""
    from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary
    from vllm.distributed.weight_transfer import nccl_common
    from vllm.utils.nccl import unpinned_nccl_env

    with unpinned_nccl_env():
        number = bytes(NCCLLibrary().ncclGetUniqueId().internal)
    info = nccl_common.NCCLWeightTransferInitInfo(
        rank_offset=1,
        world_size=1 + sum(servers.sizes),
        nccl_unique_id_b64=base64.b64encode(number).decode(),
        packed=engine.packed,
        packed_buffer_size_bytes=engine.packed_buffer_size_bytes,
        packed_num_buffers=engine.packed_num_buffers,
    )
    device = torch.accelerator.current_device_index()  # of this thread

    def join() -> None:
        engine.model_update_group = nccl_common.uid_init_process_group(number, 0, info.world_size, device)

    jobs: list[Callable[[], None]] = [join, partial(servers.init_weight_transfer_engine, nccl_common.worker_init_payload(info))]
    dict(concurrently(jobs, 2))  # the first error ends both: who waits for the others would wait forever
