"""vLLM's server as a child process, the command that starts it, and the way that the weights take to it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aer_train.config.tree import ModelConfig, RolloutConfig, TrainConfig, VLLMConfig
from aer_train.model import Policy
from aer_train.rollout import http, server_process
from aer_train.rollout.server_command import server_command, server_environment, server_line, transfer_route
from aer_train.rollout.server_process import ServerProcess, wait_until_healthy

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
from tests.train.test_vllm_process import serve
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
