"""How responses are sampled."""

from __future__ import annotations

from aer_train.config.named import is_named_value
from aer_train.config.rules.check import check
from aer_train.config.tree import TrainConfig


def check_rollout(config: TrainConfig) -> None:
    rollout = config.rollout
    check("rollout.group_size", rollout.group_size, rollout.group_size >= 2, "be >= 2")
    check("rollout.temperature", rollout.temperature, rollout.temperature > 0, "be > 0")
    check("rollout.top_p", rollout.top_p, 0 < rollout.top_p <= 1, "be in (0, 1]")
    check("rollout.max_new_tokens", rollout.max_new_tokens, rollout.max_new_tokens >= 1, "be >= 1")
    check("rollout.stop", list(rollout.stop), all(rollout.stop), "hold no empty text")
    check("rollout.batch_size", rollout.batch_size, rollout.batch_size is None or rollout.batch_size >= 1, "be >= 1 or None")
    check("rollout.refill_rounds", rollout.refill_rounds, rollout.refill_rounds >= 0, "be >= 0")
    _check_ahead(config)


def check_vllm(config: TrainConfig) -> None:
    vllm, server, needed = config.vllm, config.rollout.backend == "vllm_server", config.rollout.max_new_tokens + 1
    tolerance, length = vllm.probe_tolerance, vllm.max_model_len
    check("vllm.probe_tolerance", tolerance, tolerance is None or tolerance > 0, "be > 0 or None")
    check("vllm.max_model_len", length, length is None or length >= needed, f"be > rollout.max_new_tokens ({needed - 1}) or None")
    check("vllm.gpu_memory_utilization", vllm.gpu_memory_utilization, 0 < vllm.gpu_memory_utilization <= 1, "be in (0, 1]")
    for name in ("tensor_parallel_size", "data_parallel_size"):
        size = getattr(vllm, name)
        check(f"vllm.{name}", size, size >= 1 and (size == 1 or (server and not vllm.urls)), "be 1, or >= 1 for a server that is started")
    check("vllm.urls", vllm.urls, server or not vllm.urls, "be empty unless rollout.backend is vllm_server")
    for url in vllm.urls:
        known = url.startswith(("http://", "https://", "http+unix://"))
        check("vllm.urls", url, known, "each start with http://, https:// or http+unix://")
    for name in ("start_timeout", "request_timeout"):
        check(f"vllm.{name}", getattr(vllm, name), getattr(vllm, name) > 0, "be > 0")
    route, given = vllm.weight_transfer, bool(vllm.urls)
    check("vllm.weight_transfer", route, route != "ipc" or not given, "not be ipc for vllm.urls")
    check("vllm.weight_transfer", route, route != "nccl" or given, "not be nccl without vllm.urls (that server is on the trainer's GPU)")
    for arg in vllm.engine_args:
        check("vllm.engine_args", arg, is_named_value(arg), "each be name=value")


def _check_ahead(config: TrainConfig) -> None:
    ahead, mismatch = config.rollout.ahead, config.objective.mismatch
    check("rollout.ahead", ahead, ahead in (0, 1), "be 0 or 1")
    own = config.rollout.backend == "vllm_server" and bool(config.vllm.urls)
    check("rollout.ahead", ahead, own or not ahead, "be 0 unless rollout.backend is vllm_server with vllm.urls, on GPUs of their own")
    check("objective.mismatch", mismatch, mismatch != "off" or not ahead, "not be off with rollout.ahead 1, whose samples are a step old")
