"""How the policy's weights get to vLLM servers. Every training process takes part, for each may hold a share of them; the main one sends.

disk    a folder that the servers see, which their workers read (`vllm_worker.PolicyWeights`): works everywhere, and is the slowest
ipc     vLLM's weight-transfer API over the memory of shared GPUs
nccl    vLLM's weight-transfer API over NCCL, from the main process to all workers of all servers

Of the last two, the order of calls and what they carry is tested on a CPU, against vLLM's own classes. They have not run on GPUs yet.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from torch import Tensor

from aer_train import dist
from aer_train.model import Policy
from aer_train.rollout.http import call, concurrently
from aer_train.rollout.server_process import free_port
from aer_train.sharding import full_named_tensors

CONTROL_TIMEOUT = 1800.0
"""Seconds that a server may take to load weights, wake up or answer anything that is not a request for a sample."""


class Transfer(Protocol):
    """A way; made once the servers are there."""

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
    """Over a folder."""

    def __init__(self, policy: Policy, urls: Sequence[str], folder: Path) -> None:
        self.policy, self.urls, self.folder = policy, urls, folder.absolute()

    def send(self) -> None:
        """Write, and have it read."""
        weights = {n: t.cpu().contiguous() for n, t in full_named_tensors(self.policy.model, self.policy.dtype) if dist.is_main()}
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
    """By vLLM's own weight transfer, whose trainer side runs in this process."""

    def __init__(self, backend: str, policy: Policy, urls: Sequence[str]) -> None:
        """
        Args:
            backend: ipc or nccl.
        Raises:
            ImportError - vLLM is not installed here.
        """
        try:
            from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        except ImportError as error:
            raise ImportError(f'vllm.weight_transfer {backend} needs, beside the servers: pip install "aer-rl[vllm]"') from error
        client = Servers(urls)
        info = _ipc_info() if backend == "ipc" else _nccl_info(client)
        self._engine = WeightTransferTrainerFactory.trainer_init(info, client=client, source=PolicySource(policy))

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

        return [ParamMeta(name, self.policy.dtype, tuple(p.shape)) for name, p in self.policy.model.named_parameters()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return full_named_tensors(self.policy.model, self.policy.dtype)


class Servers:
    """Several servers as one for vLLM's trainer side (its `VLLMWeightSyncClient`)."""

    def __init__(self, urls: Sequence[str]) -> None:
        from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient

        self.urls = urls
        self._clients = [HTTPVLLMWeightSyncClient(url, timeout=CONTROL_TIMEOUT) for url in urls]
        self._sizes: list[int] | None = None

    @property
    def sizes(self) -> list[int]:
        """Workers of each server."""
        if self._sizes is None:
            self._sizes = [call(f"{url}/get_world_size", post=False, timeout=CONTROL_TIMEOUT)["world_size"] for url in self.urls]
        return self._sizes

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each server's workers come after those of the servers before it."""
        if "rank_offset" not in init_info:
            return self._all(lambda place: self._clients[place].init_weight_transfer_engine(init_info))
        offsets = [init_info["rank_offset"] + sum(self.sizes[:place]) for place in range(len(self.urls))]
        self._all(lambda place: self._clients[place].init_weight_transfer_engine({**init_info, "rank_offset": offsets[place]}))

    def start_weight_update(self) -> None:
        """On all."""
        self._all(lambda place: self._clients[place].start_weight_update())

    def update_weights(self, update_info: Any) -> None:
        """On all, at once: they receive together."""
        self._all(lambda place: self._clients[place].update_weights(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """On all."""
        self._all(lambda place: self._clients[place].finish_weight_update(weight_version))

    def _all(self, job: Callable[[int], None]) -> None:
        for _ in concurrently([partial(job, place) for place in range(len(self.urls))], len(self.urls)):
            pass


def _ipc_info() -> Any:
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    return IPCTrainerInitInfo(rank=dist.rank(), packed=True)  # in chunks: a whole copy need not fit beside the policy


def _nccl_info(servers: Servers) -> Any:
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    from vllm.utils.network_utils import get_ip

    near = all(urlsplit(url).hostname in ("localhost", "127.0.0.1") for url in servers.urls)
    address, port, size = dist.from_main(lambda: ("127.0.0.1" if near else get_ip(), free_port(), 1 + sum(servers.sizes)))
    return NCCLTrainerInitInfo(rank=dist.rank(), master_address=address, master_port=port, world_size=size)
