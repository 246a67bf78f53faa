"""vLLM's weight-transfer API against recorders in the place of its classes (the vllm lane has the real ones)."""

from __future__ import annotations

import base64
import contextlib
import importlib.machinery
import pickle
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from aer_train.config.tree import ModelConfig
from aer_train.model import Policy, load_policy
from aer_train.rollout import http
from aer_train.rollout.http import Refused
from aer_train.rollout.transfer import EngineTransfer


@pytest.fixture
def told(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """vLLM's weight transfer, replaced by recorders: what its trainer side was made with, and what each server was told."""
    found: list[Any] = []

    class Engine:
        packed, packed_buffer_size_bytes, packed_num_buffers = True, 1 << 30, 2

        def __init__(self, *, client: Any, source: Any, is_sender: bool = True) -> None:
            self.client, self.source = client, source

        @classmethod
        def trainer_init(cls, info: Any, *, client: Any, source: Any) -> Engine:
            found.append(("trainer_init", vars(info)))
            client.init_weight_transfer_engine({"packed": info.packed})
            return cls(client=client, source=source)

        def send_weights(self) -> None:
            self.client.start_weight_update()
            meta = [(meta.name, list(meta.shape)) for meta, (_, tensor) in zip(self.source.metadata(), self.source, strict=True)]
            self.client.update_weights({"names": meta, "ipc_handles": {"GPU-0": (torch.float32, b"handle")}})
            self.client.finish_weight_update()

        def shutdown(self) -> None:
            found.append(("shutdown",))

    def join(number: bytes, rank: int, size: int, device: int) -> str:
        found.append(("join", number, rank, size, device))
        return "communicator"

    root = "vllm.distributed.weight_transfer"
    contents: dict[str, dict[str, Any]] = {
        "vllm": {"__spec__": importlib.machinery.ModuleSpec("vllm", None)},
        "vllm.distributed": {},
        "vllm.distributed.device_communicators": {},
        "vllm.distributed.device_communicators.pynccl_wrapper": {
            "NCCLLibrary": lambda: SimpleNamespace(ncclGetUniqueId=lambda: SimpleNamespace(internal=bytes(range(128))))
        },
        "vllm.utils": {},
        "vllm.utils.nccl": {"unpinned_nccl_env": contextlib.nullcontext},
        root: {"WeightTransferTrainerFactory": Engine},
        root + ".base": {"ParamMeta": lambda name, dtype, shape: SimpleNamespace(name=name, dtype=dtype, shape=shape)},
        root + ".ipc_engine": {"IPCTrainerInitInfo": SimpleNamespace},
        root + ".nccl_engine": {"NCCLTrainerWeightTransferEngine": Engine},
        root + ".nccl_common": {
            "NCCLWeightTransferInitInfo": SimpleNamespace, "worker_init_payload": vars, "uid_init_process_group": join,
        },
    }  # fmt: skip
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)

    def call(url: str, body: Any = None, **_: Any) -> Any:
        server, path = url.rsplit("/", 1)
        if path == "get_world_size":
            return {"world_size": {"http://a": 4, "http://b": 2}[server]}
        found.append((server, path, body))
        return None

    monkeypatch.setattr("aer_train.rollout.transfer.call", call)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 3)
    return found


def test_transfer_over_shared_gpus(policy: Policy, told: list[Any]) -> None:
    url = http.socket_url(Path("/tmp/aer/http"))
    transfer = EngineTransfer("ipc", policy, [url])
    transfer.send()
    transfer.close()
    (update,) = [body["update_info"] for _, path, body in (t for t in told if len(t) == 3) if path == "update_weights"]
    assert pickle.loads(base64.b64decode(update.pop("ipc_handles_pickled"))) == {"GPU-0": (torch.float32, b"handle")}
    assert update == {"names": [(name, list(p.shape)) for name, p in policy.model.named_parameters()]}
    assert [t if t[0] != url else t[1:2] for t in told] == [
        ("trainer_init", {"rank": 0, "packed": True}),
        ("init_weight_transfer_engine",),
        ("start_weight_update",),
        ("update_weights",),
        ("finish_weight_update",),
        ("shutdown",),
    ]


def test_transfer_of_adapters_tells_the_names_of_their_model(policy: Policy, model_folder: Path, told: list[Any]) -> None:
    adapted = load_policy(ModelConfig(name=str(model_folder), lora_rank=4), torch.device("cpu"))
    transfer = EngineTransfer("ipc", adapted, [http.socket_url(Path("/tmp/aer/http"))])
    transfer.send()
    (update,) = [body["update_info"] for _, path, body in (t for t in told if len(t) == 3) if path == "update_weights"]
    assert update["names"] == [(name, list(p.shape)) for name, p in policy.model.named_parameters()]


def test_pickles_never_go_over_tcp(policy: Policy, told: list[Any]) -> None:
    """Whoever reaches a port of a server that takes pickles can run code in it."""
    for url in ("http://127.0.0.1:1", "https://node1", "http://localhost:8000"):
        with pytest.raises(ValueError, match=rf"vllm.weight_transfer ipc must go over Unix sockets, as it sends pickles, got .*{url}"):
            EngineTransfer("ipc", policy, [http.socket_url(Path("/tmp/aer/http")), url])
    assert not told


def test_transfer_over_nccl_to_several_servers(policy: Policy, told: list[Any]) -> None:
    """One communicator, whose id comes with the request: the trainer is 0, then come the four workers of a, then the two of b."""
    transfer = EngineTransfer("nccl", policy, ["http://a", "http://b"])
    assert ("join", bytes(range(128)), 0, 7, 3) in told
    inits = {url: body["init_info"] for url, path, body in (t for t in told if len(t) == 3) if path == "init_weight_transfer_engine"}
    assert {url: (info.pop("rank_offset"), info["world_size"]) for url, info in inits.items()} == {"http://a": (1, 7), "http://b": (5, 7)}
    assert base64.b64decode(inits["http://a"]["nccl_unique_id_b64"]) == bytes(range(128)) and inits["http://a"] == inits["http://b"]
    assert not {"master_address", "master_port"} & inits["http://a"].keys(), "with them, workers unpickle what is at an open TCP port"
    del told[:]
    transfer.send()
    for url in ("http://a", "http://b"):
        assert [path for server, path, _ in told if server == url] == ["start_weight_update", "update_weights", "finish_weight_update"]


def test_a_server_that_refuses_to_join_leaves_nobody_waiting(policy: Policy, told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A communicator waits for its members without an end."""

    def refuses(url: str, *_: Any, **__: Any) -> Any:
        if url.endswith("get_world_size"):
            return {"world_size": 1}
        raise Refused(url, 500, "no GPU")

    monkeypatch.setattr("aer_train.rollout.transfer.call", refuses)
    waits = threading.Event()
    monkeypatch.setattr(sys.modules["vllm.distributed.weight_transfer.nccl_common"], "uid_init_process_group", lambda *_: waits.wait(60))
    with pytest.raises(Refused, match="no GPU"):
        EngineTransfer("nccl", policy, ["http://a"])
    waits.set()
