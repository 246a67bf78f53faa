"""verl on a CPU: a platform, its FSDP engines, and a rollout server of transformers. For small models, tests and a first look.

    export VERL_USE_EXTERNAL_MODULES=verl_cpu VERL_PLATFORM=cpu PYTHONPATH=examples
    python -m verl.trainer.main_ppo trainer.device=cpu actor_rollout_ref.rollout.name=cpu +ray_kwargs.ray_init.num_gpus=1 ...

verl imports this module in every process. Everything goes through its registries, but for one string: verl would ask torch for the process
group "cpu:gloo,cpu:gloo".
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

BATCH = 512
"""Requests that are sampled together."""


def _device_module() -> types.ModuleType:
    """torch.cpu, with what verl asks of torch.cuda beside."""
    module = types.ModuleType("cpu_device")
    module.__dict__.update({name: getattr(torch.cpu, name) for name in dir(torch.cpu)})
    zero = dict.fromkeys(("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"), lambda *_: 0)
    others = {
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "is_available": lambda: True,
        "mem_get_info": lambda *_: (1 << 34, 1 << 34),
        "get_device_name": lambda *_: "CPU",
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
    }
    module.__dict__.update(zero | others)
    return module


_DEVICE = _device_module()


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    device_name, vendor_name, device_module = "cpu", "cpu", _DEVICE

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"  # verl counts them: tell Ray that there are some, with ray_kwargs.ray_init.num_gpus

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


def _one_backend() -> None:
    """Let torch understand the process group that verl asks for."""
    real = torch.distributed.init_process_group

    @wraps(real)
    def init(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        real("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    torch.distributed.init_process_group = init


@torch.no_grad()
def sample(model: Any, prompts: list[list[int]], tokens: int, temperature: float) -> list[tuple[list[int], list[float]]]:
    """Return up to `tokens` tokens for each prompt, the end of sequence included, and their log-probs; temperature 0 is greedy."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ends = torch.tensor(model.generation_config.eos_token_id).view(-1)
    cache, open_, drawn, logprobs = None, torch.ones(len(prompts), dtype=torch.bool), [], []
    step = ids
    for _ in range(tokens):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
        out = model(step, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        scores = (out.logits[:, -1].float() / (temperature or 1.0)).log_softmax(-1)
        step = torch.multinomial(scores.exp(), 1) if temperature else scores.argmax(-1, keepdim=True)
        drawn.append(torch.where(open_, step[:, 0], -1))
        logprobs.append(scores.gather(1, step)[:, 0])
        open_ = open_ & ~torch.isin(step[:, 0], ends)
        mask, cache = torch.cat([mask, torch.ones_like(step)], 1), out.past_key_values
        if not open_.any():
            break
    lengths = (torch.stack(drawn, 1) >= 0).sum(1).tolist()
    rows = zip(torch.stack(drawn, 1).tolist(), torch.stack(logprobs, 1).tolist(), lengths, strict=True)
    return [(row[:count], found[:count]) for row, found, count in rows]


class Server:
    """What verl asks of a rollout server. Requests that wait are sampled together; while it is paused they keep waiting."""

    def __init__(self, path: str, seed: int, tokens: int) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.tokens, self.global_steps, self.paused = tokens, 0, False
        self.waiting: list[tuple[list[int], float, asyncio.Future[Any]]] = []
        self.task: asyncio.Task[None] | None = None

    async def generate(self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((list(prompt_ids), float(sampling_params["temperature"]), future))
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        from verl.workers.rollout.replica import TokenOutput

        while self.waiting:
            await asyncio.sleep(0.05)  # for others that are on their way
            if self.paused:
                continue
            temperature = self.waiting[0][1]
            batch = [request for request in self.waiting if request[1] == temperature][:BATCH]
            self.waiting = [request for request in self.waiting if request not in batch]
            found = sample(self.model, [prompt for prompt, _, _ in batch], self.tokens, temperature)
            for (_, _, future), (ids, logprobs) in zip(batch, found, strict=True):
                output = {"token_ids": ids, "log_probs": logprobs, "stop_reason": "completed"}
                future.set_result(TokenOutput(**output, extra_fields={"global_steps": self.global_steps}))

    async def load(self, weights: dict[str, torch.Tensor], global_steps: int | None) -> None:
        """Take the trainer's weights; a tied lm_head may be missing, nothing else."""
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise ValueError(f"weights must be those of the model, got missing {missing}, unexpected {unexpected}")
        self.global_steps = self.global_steps if global_steps is None else global_steps

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        self.paused = True

    async def resume_generation(self) -> None:
        self.paused = False

    async def nothing(self, *_: Any, **__: Any) -> None:
        """Sleep, wake, caches, profiles: there is nothing to do."""

    sleep = wake_up = clear_kv_cache = release_kv_cache = resume_kv_cache = start_profile = stop_profile = nothing


def _name(replica: int) -> str:
    return f"cpu_server_{replica}"


def _replica() -> type[Any]:
    import ray
    from verl.workers.rollout.replica import RolloutReplica

    class Replica(RolloutReplica):
        async def launch_servers(self) -> None:
            options = {"name": _name(self.replica_rank), "num_cpus": 0, "max_concurrency": self.max_concurrency}
            actor = ray.remote(Server).options(**options)
            handle = actor.remote(self.model_config.path, self.config.seed + self.replica_rank, self.config.response_length)
            self.servers, self._server_handle, self._server_address = [handle], handle, _name(self.replica_rank)

    return Replica


def __getattr__(name: str) -> Any:
    """`Adapter`, made when verl asks for it by name: its base cannot be imported before verl is."""
    if name != "Adapter":
        raise AttributeError(name)
    import os

    import ray
    from verl.workers.rollout.base import BaseRollout
    from verl.workers.rollout.utils import ensure_async_iterator

    class Adapter(BaseRollout):
        """The trainer's side: one a worker, and each has a server of its own."""

        async def resume(self, tags: list[str]) -> None:
            pass

        async def release(self) -> None:
            pass

        async def update_weights(self, weights: Any, global_steps: int | None = None, **_: Any) -> None:
            found = {name: tensor.detach().cpu().float() async for name, tensor in ensure_async_iterator(weights)}
            await ray.get_actor(_name(int(os.environ["RANK"]))).load.remote(found, global_steps)

    return Adapter


def _register() -> None:
    from verl.workers.engine import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
    from verl.workers.rollout import base, replica

    EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")(FSDPEngineWithLMHead)
    base._ROLLOUT_REGISTRY["cpu", "async"] = f"{__name__}.Adapter"
    replica.RolloutReplicaRegistry.register("cpu", _replica)


_one_backend()
_register()
