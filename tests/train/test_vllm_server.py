"""The client of vLLM servers against a small server that answers as vLLM does; the server as a child process; vLLM's weight-transfer API
against recorders in the place of its classes (the vllm lane has the real ones)."""

from __future__ import annotations

import base64
import contextlib
import importlib.machinery
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from aer_train.config.tree import DataConfig, ModelConfig, RolloutConfig, TrainConfig, VLLMConfig
from aer_train.model import Policy, load_policy
from aer_train.rollout import http, server_process
from aer_train.rollout.backends import make_rollout
from aer_train.rollout.engine import EngineRollout
from aer_train.rollout.hf import HFRollout
from aer_train.rollout.http import Refused, ask, call, concurrently
from aer_train.rollout.protocol import SyncError
from aer_train.rollout.server_command import server_command, server_environment, server_line, transfer_route
from aer_train.rollout.server_process import ServerProcess, private_folder, wait_until_healthy
from aer_train.rollout.transfer import EngineTransfer
from aer_train.types import Prompt
from tests.ranks import free_port
from tests.train.fake_vllm_server import FakeServer

PROMPTS = [Prompt(str(i), f"{i}+{7 * i % 10}=?", str(i)) for i in range(5)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSE", 0.001)


@pytest.fixture
def servers(model_folder: Path) -> Iterator[list[FakeServer]]:
    """One on a port and one on a Unix socket."""
    folder = private_folder()
    found = [FakeServer(model_folder), FakeServer(model_folder, folder / "http")]
    yield found
    for server in found:
        server.close()
    shutil.rmtree(folder)


def rollout_of(policy: Policy, servers: list[FakeServer], folder: Path, **options: Any) -> EngineRollout:
    vllm = VLLMConfig(urls=tuple(server.url for server in servers), start_timeout=5.0, **options)
    rollout = RolloutConfig(backend="vllm_server", max_new_tokens=6, temperature=0.8)
    config = TrainConfig(model=ModelConfig(name=str(folder)), rollout=rollout, vllm=vllm, data=DataConfig(max_prompt_tokens=20))
    found = make_rollout(config, policy, PROMPTS, folder, lambda text: None)
    assert isinstance(found, EngineRollout)
    return found


@pytest.mark.slow
def test_samples_of_the_present_policy(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    """Through two updates: each server has the weights, gets whole groups in turn, and samples are in their places."""
    rollout = rollout_of(policy, servers, tmp_path)
    for version in range(2):
        found = rollout.sync(version)
        assert found["rollout/version"] == version and found["rollout/probe_max"] < 1e-5
        samples = rollout.generate(PROMPTS, 3, (0, version))
        assert [(s.prompt, s.index, s.version) for s in samples] == [(p, i, version) for p in range(5) for i in range(3)]
        for s in samples:
            logits = policy.model(torch.tensor([s.prompt_tokens + s.tokens])).logits[0, len(s.prompt_tokens) - 1 : -1] / 0.8
            expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(s.tokens)[:, None])[:, 0]
            assert s.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
            assert s.finished == (s.tokens[-1] in policy.eos_ids)
        with torch.no_grad():
            policy.head.weight += 0.1 * torch.randn_like(policy.head.weight)
    sent = [{tuple(policy.tokenizer.encode(PROMPTS[p].text)) for p in places} for places in ((0, 2, 4), (1, 3))]
    assert [set(server.prompts) for server in servers] == sent
    for server in servers:
        assert server.calls == {
            "/health": 1, "/server_info?config_format=json": 1, "/weight_checker": 1, "/collective_rpc": 2, "/reset_prefix_cache": 2, "/update_weight_version": 2,
        }  # fmt: skip
    assert (tmp_path / "vllm" / "weights").is_dir()
    rollout.close()
    assert not (tmp_path / "vllm" / "weights").exists()


def test_adapters_are_served_within_their_model(servers: list[FakeServer], model_folder: Path, tmp_path: Path) -> None:
    """The probe, which compares the servers' log-probs with those of the policy, sees the adapters; a server that keeps the model alone is
    found."""
    policy = load_policy(ModelConfig(name=str(model_folder), lora_rank=4), torch.device("cpu"))
    rollout = rollout_of(policy, servers, tmp_path)
    for version in range(2):
        assert rollout.sync(version)["rollout/probe_max"] < 1e-5
        with torch.no_grad():
            for parameter in policy.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    servers[1].loads_weights = False
    with pytest.raises(SyncError, match="vLLM still has older weights after step 2"):
        rollout.sync(2)


@pytest.mark.slow
def test_the_same_names_give_the_same_samples(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    one, two = rollout_of(policy, servers[:1], tmp_path), rollout_of(policy, servers, tmp_path)
    one.sync(0)
    alone = one.generate(PROMPTS, 2, (0,))
    two.sync(0)
    assert [s.tokens for s in two.generate(PROMPTS, 2, (0,))] == [s.tokens for s in alone]
    assert [s.tokens for s in two.generate(PROMPTS[3:], 2, (0,), first=3)] == [s.tokens for s in alone if s.prompt >= 3]


def test_failures_that_pass(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    """Overload, a dropped connection, an answer of something in between: asked again, elsewhere, for the same sample."""
    rollout = rollout_of(policy, servers, tmp_path)
    rollout.sync(0)
    expected = rollout.generate(PROMPTS, 2, (0,))
    servers[0].failures = [503, "", "<html>busy</html>", 500]
    assert rollout.generate(PROMPTS, 2, (0,)) == expected
    assert not servers[0].failures


def test_failures_that_stay(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    rollout = rollout_of(policy, servers[:1], tmp_path)
    rollout.sync(0)
    servers[0].failures = [503] * 4
    with pytest.raises(
        ConnectionError, match=rf"no answer in 4 attempts, last: {servers[0].url}/inference/v1/generate answered 503: failure 503"
    ):
        rollout.generate(PROMPTS[:1], 1, (0,))
    servers[0].failures = [400, 503]
    with pytest.raises(Refused, match="answered 400: failure 400"):
        rollout.generate(PROMPTS[:1], 1, (0,))
    assert servers[0].failures == [503], "what is wrong with the request will stay wrong"
    servers[0].failures = ['{"choices": []}', '{"choices": [{"token_ids": [], "logprobs": {"content": []}, "weight_versions": []}]}']
    with pytest.raises(ConnectionError, match=r"must answer as vLLM 0.32 does, got .*choices"):
        rollout.generate(PROMPTS[:1], 1, (0,))
    with pytest.raises(ConnectionError, match="must answer with tokens and as many log-probs, got 0 and 0"):
        rollout.generate(PROMPTS[:1], 1, (0,))
    servers[0].close()
    with pytest.raises(ConnectionError, match=r"no answer in 4 attempts, last: .*/inference/v1/generate cannot be reached"):
        rollout.generate(PROMPTS[:1], 1, (0,))


def test_a_server_that_hangs(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    rollout = rollout_of(policy, servers[:1], tmp_path, request_timeout=0.2)
    rollout.sync(0)
    with servers[0].lock, pytest.raises(TimeoutError, match=r"/inference/v1/generate did not answer within 0.2 s"):
        rollout.generate(PROMPTS[:1], 1, (0,))


def test_a_server_that_lost_its_weights(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    """Restarted by its keeper, or updated by another run, since the last update: seen in the first answer."""
    rollout = rollout_of(policy, servers, tmp_path)
    rollout.sync(2)
    servers[1].label = "default"
    with pytest.raises(SyncError, match=r"a server has answered with the weights default in place of \w+-2: it was restarted"):
        rollout.generate(PROMPTS, 1, (0,))


def test_one_server_of_two_that_stays_behind(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    rollout = rollout_of(policy, servers, tmp_path)
    rollout.sync(0)
    servers[1].loads_weights = False
    with torch.no_grad():
        policy.head.weight += 1e-4
    with pytest.raises(SyncError, match="vLLM still has older weights after step 1"):
        rollout.sync(1)


def test_a_server_that_has_the_weights_from_elsewhere_and_takes_no_update(
    policy: Policy, servers: list[FakeServer], tmp_path: Path
) -> None:
    """It was started from the policy's own folder: without the reset before the first update, the first probe would see nothing."""
    servers[0].loads_weights = False
    with pytest.raises(SyncError, match="vLLM does not have the policy's weights after step 0"):
        rollout_of(policy, servers[:1], tmp_path).sync(0)


@pytest.mark.parametrize(
    ("section", "name", "value", "match"),
    [
        ("model_config", "logprobs_mode", "raw_logprobs", r"must run with --logprobs-mode processed_logprobs, got raw_logprobs"),
        ("model_config", "dtype", "torch.bfloat16", r"must run with --dtype float32, got bfloat16"),
        ("model_config", "max_model_len", 25, r"must run with --max-model-len >= 26, got 25"),
        (
            "parallel_config",
            "worker_extension_cls",
            "",
            rf"must run with --worker-extension-cls {'aer_train.rollout.vllm_worker.PolicyWeights'}",
        ),
        ("model_config", None, None, r"vllm.urls must be vLLM servers in development mode"),
    ],
)
def test_servers_that_do_not_fit(
    policy: Policy, servers: list[FakeServer], tmp_path: Path, section: str, name: str, value: Any, match: str
) -> None:
    if name is None:
        del servers[1].config[section]
    else:
        servers[1].config[section][name] = value
    with pytest.raises(
        ConnectionError, match=match + r"[^\n]* A server that fits: VLLM_SERVER_DEV_MODE=1 vllm serve .*--logprobs-mode processed_logprobs"
    ):
        rollout_of(policy, servers, tmp_path).sync(0)


def test_copies_behind_one_url_are_all_probed(
    policy: Policy, servers: list[FakeServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers[0].config["parallel_config"]["data_parallel_size"] = 3
    seen = []
    real = call

    def recording(url: str, body: Any = None, **options: Any) -> Any:
        seen.append((options.get("headers") or {}).get("X-data-parallel-rank"))
        return real(url, body, **options)

    monkeypatch.setattr("aer_train.rollout.vllm_server.call", recording)
    rollout_of(policy, servers, tmp_path).sync(0)
    assert {rank: seen.count(rank) for rank in ("0", "1", "2")} == dict.fromkeys("012", 5)


def test_jobs_in_threads() -> None:
    together = threading.Barrier(4, timeout=10)
    assert sorted(concurrently([together.wait] * 4, 4)) == [(place, pytest.approx(1.5, abs=1.5)) for place in range(4)], "four at a time"
    assert dict(concurrently([lambda place=place: place**2 for place in range(50)], 3)) == {place: place**2 for place in range(50)}
    ran = []
    jobs = [lambda place=place: time.sleep(0.001) or ran.append(place) or 1 // (place != 3) for place in range(2000)]
    with pytest.raises(ZeroDivisionError):
        list(concurrently(jobs, 1))
    count = len(ran)
    time.sleep(0.05)
    assert len(ran) <= count + 1 < 2000, "after an error no new job is begun"


def test_nobody_at_home() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError, match=f"{url}/x cannot be reached: .*refused"):
        call(url + "/x", timeout=1.0)
    with pytest.raises(ConnectionError, match="no answer in 4 attempts"):
        ask([url], 0, "/x", {}, timeout=1.0)
    with pytest.raises(TimeoutError, match=r"vLLM must answer within vllm.start_timeout = 0.1 s, got: .* cannot be reached"):
        wait_until_healthy(url, 0.1, lambda text: None)


SERVE = """
import http.server, os, socket, subprocess, sys, time
time.sleep(float(sys.argv[2]))
print("serving", flush=True)
child = subprocess.Popen(["sleep", "600"])
open(sys.argv[3], "w").write(f"{os.getpid()} {child.pid} {os.path.dirname(sys.argv[1])}")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *args):
        pass
class Server(http.server.HTTPServer):
    address_family = socket.AF_UNIX
    def server_bind(self):
        self.socket.bind(self.server_address)
Server(sys.argv[1], Handler).serve_forever()
"""


def serve(pause: float, pids: Path) -> Callable[[Path], list[str]]:
    return lambda socket: [sys.executable, "-c", SERVE, str(socket), str(pause), str(pids)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_a_server_as_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "TELL_EVERY", 0.1)
    told, pids = list[str](), tmp_path / "pids"
    server = ServerProcess(serve(0.7, pids), dict(os.environ), tmp_path / "logs" / "server.log")
    wait_until_healthy(server.url, 30.0, told.append, server)
    assert told and f"waiting for vLLM at {server.url}, " in told[0] and "server.log" in told[0]
    server.close()
    server.close()
    assert gone([int(pid) for pid in pids.read_text().split()[:2]]), "with what it has started"
    assert "serving" in server.log.read_text() and not server.folder.exists()


def test_a_server_that_ends_before_it_answers(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no GPU left'); raise SystemExit(3)"]
    server = ServerProcess(lambda socket: command, dict(os.environ), tmp_path / "server.log")
    with pytest.raises(ChildProcessError, match=r"ended with exit code 3; its log is .*server.log: .*no GPU left"):
        wait_until_healthy(server.url, 30.0, lambda text: None, server)
    server.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the death of a parent is a signal on Linux only")
def test_a_server_ends_with_a_trainer_that_is_killed(tmp_path: Path) -> None:
    parent = f"""
import os, time
from pathlib import Path
from aer_train.rollout.server_process import ServerProcess
from tests.train.test_vllm_server import serve
ServerProcess(serve(0, Path(r"{tmp_path / "pids"}")), dict(os.environ), Path(r"{tmp_path / "log"}"))
time.sleep(600)
"""
    trainer = subprocess.Popen([sys.executable, "-c", parent])
    deadline = time.monotonic() + 60
    while not ((tmp_path / "pids").exists() and (tmp_path / "pids").read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    server, child, folder = (tmp_path / "pids").read_text().split()
    assert gone([int(server)])
    shutil.rmtree(folder)
    if alive(int(child)):
        os.kill(int(child), signal.SIGKILL)  # a plain `sleep`, which nobody tells; vLLM's workers watch their parent


def server_config(folder: Path, **options: Any) -> TrainConfig:
    return TrainConfig(model=ModelConfig(name=str(folder)), rollout=RolloutConfig(backend="vllm_server"), vllm=VLLMConfig(**options))


def test_the_command_of_a_server(policy: Policy, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    config = server_config(model_folder, tensor_parallel_size=2, engine_args=("kv_cache_dtype=fp8", "enable_prefix_caching=false"))
    monkeypatch.setenv("VLLM_API_KEY", "of another server")
    env = server_environment(config, policy)
    line = " ".join(server_command(config, policy, Path("/tmp/aer/http")))
    for part in (
        f" {model_folder} ", "--load-format dummy", "--logprobs-mode processed_logprobs", "--generation-config vllm", "--dtype float32",
        "--tensor-parallel-size 2", "--data-parallel-size 1", "--enable-scale-out", "--no-enable-prefix-caching", "--kv-cache-dtype fp8",
        "--worker-extension-cls aer_train.rollout.vllm_worker.PolicyWeights", "--uds /tmp/aer/http",
    ):  # fmt: skip
        assert part in line
    assert "--host" not in line and "--port" not in line
    assert env["VLLM_SERVER_DEV_MODE"] == "1" and env.get("GLOO_SOCKET_IFNAME") == ("lo" if sys.platform == "linux" else None)
    assert not {"RANK", "MASTER_PORT", "VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_API_KEY"} & env.keys()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://node1:8000", "--host node1 --port 8000"),
        ("http://10.0.0.7", "--host 10.0.0.7 --port 80"),
        ("https://[fd00::1]:8443/prefix", "--host fd00::1 --port 8443"),
        (http.socket_url(Path("/run/user/1000/a b")), "--uds '/run/user/1000/a b'"),
    ],
)
def test_the_line_for_a_server_of_your_own_names_where_it_listens(policy: Policy, model_folder: Path, url: str, address: str) -> None:
    """Without a host, vLLM listens on all interfaces."""
    line = server_line(server_config(model_folder, urls=(url,)), policy, url)
    assert line.startswith("VLLM_SERVER_DEV_MODE=1 vllm serve ") and line.endswith(f" {address}")
    assert "INSECURE" not in line


def on_gpu(policy: Policy) -> Policy:
    """As far as the choice of a route goes."""
    return SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, model=policy.model)  # type: ignore[return-value]


def test_routes(policy: Policy, model_folder: Path) -> None:
    started, given = server_config(model_folder), server_config(model_folder, urls=("http://a:1",))
    assert [transfer_route(c, policy) for c in (started, given)] == ["disk", "disk"]
    assert [transfer_route(c, on_gpu(policy)) for c in (started, given)] == ["ipc", "nccl"]
    with pytest.raises(ValueError, match=r"vllm.weight_transfer must be auto or disk where the policy is on a CPU, got nccl"):
        transfer_route(server_config(model_folder, weight_transfer="nccl"), policy)
    command, env = server_command(started, on_gpu(policy), Path("/s")), server_environment(started, on_gpu(policy))
    assert '{"backend": "ipc"}' in command and "--enable-sleep-mode" in command and "--worker-extension-cls" not in command
    line = server_line(given, on_gpu(policy), "http://a:1")
    assert env["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1" and "--enable-sleep-mode" not in line and "INSECURE" not in line


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


def test_sleep_around_training(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    """The order of calls to a server that shares the GPU: asleep from release to the next update, its cache back after the weights."""
    rollout = rollout_of(policy, servers[:1], tmp_path)
    rollout.sync(0)
    order: list[str] = []
    servers[0].calls = SimpleNamespace(__getitem__=None)  # type: ignore[assignment]

    class Recorder(dict):  # type: ignore[type-arg]
        def __missing__(self, key: str) -> int:
            return 0

        def __setitem__(self, key: str, value: int) -> None:
            order.append(key)

    servers[0].calls = Recorder()  # type: ignore[assignment]
    rollout.engine._sleeps = True  # as on a GPU
    rollout.release()
    rollout.release()
    rollout.sync(1)
    rollout.sync(2)
    update = ["/collective_rpc", "/reset_prefix_cache", "/update_weight_version"]
    assert order == ["/sleep?level=1", "/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache", *update[1:], *update]


@pytest.mark.slow
def test_the_backends_draw_from_the_same_distribution(policy: Policy, servers: list[FakeServer], tmp_path: Path) -> None:
    """First tokens of the server's backend and of transformers', which have nothing in common but the protocol."""
    rollout = rollout_of(policy, servers, tmp_path)
    rollout.sync(0)
    config = replace(rollout.config, max_new_tokens=1)
    rollout.config = config
    counts = [
        torch.bincount(torch.tensor([s.tokens[0] for s in source.generate(PROMPTS[:1], 400, (0,))]), minlength=17)
        for source in (rollout, HFRollout(policy, config))
    ]
    both = (counts[0] + counts[1]).double()
    usual = both > 10
    chi_square = ((counts[0] - counts[1]).double()[usual] ** 2 / both[usual]).sum().item()
    freedom = int(usual.sum()) - 1
    assert freedom >= 4 and chi_square < freedom + 4 * (2 * freedom) ** 0.5
