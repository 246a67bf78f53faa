"""The command that starts a vLLM server for a configuration: to be run here, or to be shown."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from aer_train.config.tree import TrainConfig
from aer_train.model import Policy
from aer_train.rollout.http import UNIX
from aer_train.rollout.vllm import engine_arguments


def transfer_route(config: TrainConfig, policy: Policy) -> str:
    """Return vllm.weight_transfer with auto resolved.

    Raises:
        ValueError - the route needs a GPU, and there is none.
    """
    route, on_gpu = config.vllm.weight_transfer, policy.device.type == "cuda"
    if route == "auto":
        return "disk" if not on_gpu else "nccl" if config.vllm.urls else "ipc"
    if route != "disk" and not on_gpu:
        raise ValueError(f"vllm.weight_transfer must be auto or disk where the policy is on a CPU, got {route}")
    return route


def server_command(config: TrainConfig, policy: Policy, socket: Path) -> list[str]:
    """Return the command that serves the policy's model on a Unix socket of this machine."""
    try:
        importlib.metadata.version("vllm")
        start = ["-m", "vllm.entrypoints.cli.main", "serve"]
    except importlib.metadata.PackageNotFoundError:  # a build by another name, whose `vllm serve` cannot tell its version
        start = ["-m", "vllm.entrypoints.openai.api_server", "--model"]
    return [sys.executable, "-P", *start, *_flags(config, policy), "--uds", str(socket)]


def server_environment(config: TrainConfig, policy: Policy) -> dict[str, str]:
    """Return the environment of that command."""
    from_torchrun = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    env = {name: value for name, value in os.environ.items() if name not in from_torchrun and not name.startswith("TORCHELASTIC")}
    if policy.device.type == "cpu":
        env.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    if sys.platform == "linux":
        env["GLOO_SOCKET_IFNAME"] = "lo"  # its processes are all on this machine, and believe whoever talks to them
    env.pop("VLLM_API_KEY", None)  # this server needs none: only this user reaches it
    env["VLLM_SERVER_DEV_MODE"] = "1"  # has the calls that replace weights
    if transfer_route(config, policy) == "ipc":
        env["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # handles of GPU memory are sent as pickles
    return env


def server_line(config: TrainConfig, policy: Policy, url: str) -> str:
    """Return the command for a shell that starts a server for one of vllm.urls: it listens there, and on no other interface."""
    parts = urlsplit(url)
    if parts.scheme == UNIX:
        address = ["--uds", unquote(parts.netloc)]
    else:
        address = ["--host", parts.hostname or "", "--port", str(parts.port or {"http": 80, "https": 443}[parts.scheme])]
    return shlex.join(["VLLM_SERVER_DEV_MODE=1", "vllm", "serve", *_flags(config, policy), *address])


def _flags(config: TrainConfig, policy: Policy) -> list[str]:
    arguments, route = engine_arguments(config, policy), transfer_route(config, policy)
    arguments |= {"enable_scale_out": True, "tensor_parallel_size": config.vllm.tensor_parallel_size}
    arguments["data_parallel_size"] = config.vllm.data_parallel_size
    if route != "disk":
        arguments["weight_transfer_config"] = {"backend": route}
        del arguments["worker_extension_cls"]
    flags = [arguments.pop("model")]
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return flags
