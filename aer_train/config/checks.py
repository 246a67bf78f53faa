"""Rules that hold between the fields of a configuration; the types and choices are checked where it is parsed."""

from __future__ import annotations

from aer_train.config import TrainConfig
from aer_train.tasks import TASKS


def check_config(config: TrainConfig) -> None:
    """Raise ValueError, naming the option, for the first rule that is broken."""
    data, rollout, objective, optim = config.data, config.rollout, config.objective, config.optim
    _check("data.max_prompt_tokens", data.max_prompt_tokens, data.max_prompt_tokens >= 1, "be >= 1")
    _check("data.limit", data.limit, data.limit is None or data.limit >= 1, "be >= 1 or None")

    _check("rollout.group_size", rollout.group_size, rollout.group_size >= 2, "be >= 2")
    _check("rollout.temperature", rollout.temperature, rollout.temperature > 0, "be > 0")
    _check("rollout.max_new_tokens", rollout.max_new_tokens, rollout.max_new_tokens >= 1, "be >= 1")
    _check("rollout.batch_size", rollout.batch_size, rollout.batch_size >= 1, "be >= 1")
    _check("rollout.refill_rounds", rollout.refill_rounds, rollout.refill_rounds >= 0, "be >= 0")

    _check_vllm(config)

    _check("objective.clip_low", objective.clip_low, objective.clip_low >= 0, "be >= 0")
    _check("objective.clip_high", objective.clip_high, objective.clip_high >= 0, "be >= 0")
    dual = objective.dual_clip
    _check("objective.dual_clip", dual, dual is None or dual > 1, "be > 1 or None")
    _check("objective.dual_clip", dual, dual is None or objective.kind == "ppo", f"be None for objective.kind {objective.kind}")
    gspo_ok = objective.kind != "gspo" or objective.aggregation == "sequence_mean"
    _check("objective.aggregation", objective.aggregation, gspo_ok, "be sequence_mean for objective.kind gspo")

    weights_ok = objective.kind != "gspo" or not objective.mismatch.startswith("token")
    _check("objective.mismatch", objective.mismatch, weights_ok, "be of the whole sequence (or off, or auto) for objective.kind gspo")
    _check("objective.mismatch_cap", objective.mismatch_cap, objective.mismatch_cap >= 1, "be >= 1")

    _check("optim.lr", optim.lr, optim.lr > 0, "be > 0")
    _check("optim.betas", optim.betas, all(0 <= beta < 1 for beta in optim.betas), "be in [0, 1)")
    _check("optim.weight_decay", optim.weight_decay, optim.weight_decay >= 0, "be >= 0")
    _check("optim.grad_clip", optim.grad_clip, optim.grad_clip > 0, "be > 0")
    _check("optim.warmup_steps", optim.warmup_steps, optim.warmup_steps >= 0, "be >= 0")
    _check("optim.prompts_per_step", optim.prompts_per_step, optim.prompts_per_step >= 1, "be >= 1")
    divides = optim.updates_per_step >= 1 and optim.prompts_per_step % optim.updates_per_step == 0
    _check("optim.updates_per_step", optim.updates_per_step, divides, f"divide optim.prompts_per_step ({optim.prompts_per_step})")
    _check("optim.tokens_per_microbatch", optim.tokens_per_microbatch, optim.tokens_per_microbatch >= 1, "be >= 1")
    memory = optim.loss_memory_mib
    _check("optim.loss_memory_mib", memory, memory is None or memory >= 1, "be >= 1 or None")

    evaluation, run = config.eval, config.run
    _check("eval.every", evaluation.every, evaluation.every >= 0, "be >= 0")
    _check("eval.samples", evaluation.samples, 1 <= evaluation.samples <= 1024, "be in [1, 1024]")
    math_ok = not evaluation.suites or config.reward.kind not in TASKS
    _check("eval.suites", evaluation.suites, math_ok, f"be empty for reward.kind {config.reward.kind}")
    _check("eval.suites", evaluation.suites, len(set(evaluation.suites)) == len(evaluation.suites), "name each suite once")
    _check("eval.temperature", evaluation.temperature, evaluation.temperature >= 0, "be >= 0")
    greedy_ok = evaluation.temperature > 0 or evaluation.samples == 1
    _check("eval.samples", evaluation.samples, greedy_ok, "be 1 for eval.temperature 0 (greedy samples are all the same)")
    _check("eval.limit", evaluation.limit, evaluation.limit is None or evaluation.limit >= 1, "be >= 1 or None")

    _check("reward.timeout", config.reward.timeout, config.reward.timeout > 0, "be > 0")
    _check("reward.workers", config.reward.workers, config.reward.workers >= 1, "be >= 1")
    strict = not config.reward.lenient or config.reward.kind == "math"
    _check("reward.lenient", config.reward.lenient, strict, f"be False for reward.kind {config.reward.kind}")
    most = config.reward.max_failure_frac
    _check("reward.max_failure_frac", most, 0 <= most <= 1, "be in [0, 1]")
    buffer, penalty, tolerance = config.reward.overlong_buffer, config.reward.overlong_penalty, config.reward.tolerance
    fits = 0 <= buffer <= rollout.max_new_tokens
    _check("reward.overlong_buffer", buffer, fits, f"be in [0, rollout.max_new_tokens = {rollout.max_new_tokens}]")
    _check("reward.overlong_penalty", penalty, penalty >= 0, "be >= 0")
    _check("reward.tolerance", tolerance, tolerance >= 0, "be >= 0")
    _check("run.steps", run.steps, run.steps >= 1, "be >= 1")
    _check("run.threads", run.threads, run.threads is None or run.threads >= 1, "be >= 1 or None")
    _check("run.timeout", run.timeout, run.timeout > 0, "be > 0")
    _check("run.save_every", run.save_every, run.save_every >= 0, "be >= 0")
    _check("run.keep", run.keep, run.keep >= 1, "be >= 1")
    _check("run.save_samples_every", run.save_samples_every, run.save_samples_every >= 0, "be >= 0")
    _check("run.bonus_share_every", run.bonus_share_every, run.bonus_share_every >= 0, "be >= 0")


def _check_vllm(config: TrainConfig) -> None:
    vllm, server, needed = config.vllm, config.rollout.backend == "vllm_server", config.rollout.max_new_tokens + 1
    tolerance, length, port = vllm.probe_tolerance, vllm.max_model_len, vllm.port
    _check("vllm.probe_tolerance", tolerance, tolerance is None or tolerance > 0, "be > 0 or None")
    _check("vllm.max_model_len", length, length is None or length >= needed, f"be > rollout.max_new_tokens ({needed - 1}) or None")
    _check("vllm.gpu_memory_utilization", vllm.gpu_memory_utilization, 0 < vllm.gpu_memory_utilization <= 1, "be in (0, 1]")
    for name in ("tensor_parallel_size", "data_parallel_size"):
        size = getattr(vllm, name)
        _check(f"vllm.{name}", size, size >= 1 and (size == 1 or (server and not vllm.urls)), "be 1, or >= 1 for a server that is started")
    _check("vllm.urls", vllm.urls, server or not vllm.urls, "be empty unless rollout.backend is vllm_server")
    for url in vllm.urls:
        _check("vllm.urls", url, url.startswith(("http://", "https://")), "each start with http:// or https://")
    _check("vllm.port", port, port is None or 0 < port < 65536, "be in [1, 65535] or None")
    for name in ("start_timeout", "request_timeout"):
        _check(f"vllm.{name}", getattr(vllm, name), getattr(vllm, name) > 0, "be > 0")
    _check("vllm.weight_transfer", vllm.weight_transfer, vllm.weight_transfer != "ipc" or not vllm.urls, "not be ipc for vllm.urls")
    for arg in vllm.engine_args:
        _check("vllm.engine_args", arg, arg.partition("=")[0].isidentifier() and "=" in arg, "each be name=value")


def _check(name: str, value: object, ok: bool, rule: str) -> None:
    if not ok:
        raise ValueError(f"{name} must {rule}, got {value}")
