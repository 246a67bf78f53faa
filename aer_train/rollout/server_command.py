"""The command that starts a vLLM server for a configuration: to be run here, or to be shown."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import sys

from aer_train.config import TrainConfig
from aer_train.model import Policy
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


def server_command(config: TrainConfig, policy: Policy, port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command that serves the policy's model on this machine, and its environment."""
    try:
        importlib.metadata.version("vllm")
        start = ["-m", "vllm.entrypoints.cli.main", "serve"]
    except importlib.metadata.PackageNotFoundError:  # a build by another name, whose `vllm serve` cannot tell its version
        start = ["-m", "vllm.entrypoints.openai.api_server", "--model"]
    from_torchrun = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    env = {name: value for name, value in os.environ.items() if name not in from_torchrun and not name.startswith("TORCHELASTIC")}
    if policy.device.type == "cpu":
        env.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    address = ["--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, *start, *_flags(config, policy), *address], env | _variables(transfer_route(config, policy))


def server_line(config: TrainConfig, policy: Policy) -> str:
    """Return the command for a shell that starts a server for vllm.urls."""
    variables = [f"{name}={value}" for name, value in _variables(transfer_route(config, policy)).items()]
    return shlex.join([*variables, "vllm", "serve", *_flags(config, policy)])


def _variables(route: str) -> dict[str, str]:
    """Development mode has the calls that replace weights; handles of GPU memory are sent as pickles, between processes of one machine."""
    return {"VLLM_SERVER_DEV_MODE": "1"} | ({"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"} if route == "ipc" else {})


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
