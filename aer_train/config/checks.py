"""Rules that hold between the fields of a configuration; the types and choices are checked where it is parsed."""

from __future__ import annotations

import math
from datetime import datetime
from math import inf

from aer_kernels.methods import check_method
from aer_kernels.methods.seam import also_needs, moves, needs_pass
from aer_train.config.inert import check_inert
from aer_train.config.method import GIVEN, method_of
from aer_train.config.named import is_named_value
from aer_train.config.tree import DataConfig, TrainConfig
from aer_train.tasks import PREFIX, TASKS

OWN_ARGS = frozenset(
    {"conversation", "messages", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message", "padding", "truncation"}
    | {"max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now"}
)
"""Arguments of a chat template that are not data.template_args."""

OF_ROWS = ("prompt_column", "answer_column", "tier_column", "chat", "system", "template_args", "date", "template")
"""Options of data that embedded tasks have no use for."""


def check_config(config: TrainConfig) -> None:
    """Raise ValueError, naming the option, for the first rule that is broken."""
    data, rollout, objective, optim, model = config.data, config.rollout, config.objective, config.optim, config.model
    _check("model.lora_rank", model.lora_rank, model.lora_rank >= 0, "be >= 0")
    thin = model.param_dtype == "float32" or model.dtype != "float32"
    _check("model.param_dtype", model.param_dtype, thin, "be float32 for model.dtype float32")
    own = model.param_dtype == "float32" or not model.lora_rank
    _check("model.param_dtype", model.param_dtype, own, "be float32 with model.lora_rank > 0")
    _check("model.lora_alpha", model.lora_alpha, model.lora_alpha >= 1, "be >= 1")
    _check("model.lora_targets", list(model.lora_targets), all(model.lora_targets) and bool(model.lora_targets), "name at least one layer")
    _check("data.max_prompt_tokens", data.max_prompt_tokens, data.max_prompt_tokens >= 1, "be >= 1")
    _check("data.limit", data.limit, data.limit is None or data.limit >= 1, "be >= 1 or None")
    for arg in data.template_args:
        _check("data.template_args", arg, is_named_value(arg), "each be name=value")
        _check("data.template_args", arg, arg.partition("=")[0] not in OWN_ARGS, "leave the messages and the kind of output to the trainer")
    _check("data.date", data.date, data.date is None or _is_date(data.date), "be a date such as 2026-11-29, or None")
    _check_embedded(config)

    _check("rollout.group_size", rollout.group_size, rollout.group_size >= 2, "be >= 2")
    _check("rollout.temperature", rollout.temperature, rollout.temperature > 0, "be > 0")
    _check("rollout.top_p", rollout.top_p, 0 < rollout.top_p <= 1, "be in (0, 1]")
    _check("rollout.max_new_tokens", rollout.max_new_tokens, rollout.max_new_tokens >= 1, "be >= 1")
    _check("rollout.stop", list(rollout.stop), all(rollout.stop), "hold no empty text")
    _check("rollout.batch_size", rollout.batch_size, rollout.batch_size is None or rollout.batch_size >= 1, "be >= 1 or None")
    _check("rollout.refill_rounds", rollout.refill_rounds, rollout.refill_rounds >= 0, "be >= 0")

    _check_ahead(config)
    _check_difficulty(config)
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

    _check("objective.kl_coef", objective.kl_coef, 0 <= objective.kl_coef < inf, "be >= 0")

    _check("optim.lr", optim.lr, optim.lr > 0, "be > 0")
    _check("optim.betas", optim.betas, all(0 <= beta < 1 for beta in optim.betas), "be in [0, 1)")
    _check("optim.weight_decay", optim.weight_decay, optim.weight_decay >= 0, "be >= 0")
    _check("optim.grad_clip", optim.grad_clip, optim.grad_clip > 0, "be > 0")
    _check("optim.warmup_steps", optim.warmup_steps, optim.warmup_steps >= 0, "be >= 0")
    _check("optim.prompts_per_step", optim.prompts_per_step, optim.prompts_per_step >= 1, "be >= 1")
    divides = optim.updates_per_step >= 1 and optim.prompts_per_step % optim.updates_per_step == 0
    _check("optim.updates_per_step", optim.updates_per_step, divides, f"divide optim.prompts_per_step ({optim.prompts_per_step})")
    tokens = optim.tokens_per_microbatch
    _check("optim.tokens_per_microbatch", tokens, tokens is None or tokens >= 1, "be >= 1 or None")
    memory = optim.loss_memory_mib
    _check("optim.loss_memory_mib", memory, memory is None or memory >= 1, "be >= 1 or None")

    evaluation, run = config.eval, config.run
    _check("eval.every", evaluation.every, evaluation.every >= 0, "be >= 0")
    on_something = evaluation.data is not None or bool(evaluation.suites)
    _check("eval.every", evaluation.every, on_something or not evaluation.every, "be 0 without eval.data and eval.suites")
    _check("eval.samples", evaluation.samples, 1 <= evaluation.samples <= 1024, "be in [1, 1024]")
    math_ok = not evaluation.suites or config.reward.kind not in TASKS
    _check("eval.suites", evaluation.suites, math_ok, f"be empty for reward.kind {config.reward.kind}")
    _check("eval.suites", evaluation.suites, len(set(evaluation.suites)) == len(evaluation.suites), "name each suite once")
    _check("eval.top_p", evaluation.top_p, 0 < evaluation.top_p <= 1, "be in (0, 1]")
    _check("eval.temperature", evaluation.temperature, evaluation.temperature >= 0, "be >= 0")
    greedy_ok = evaluation.temperature > 0 or evaluation.samples == 1
    _check("eval.samples", evaluation.samples, greedy_ok, "be 1 for eval.temperature 0 (greedy samples are all the same)")
    _check("eval.limit", evaluation.limit, evaluation.limit is None or evaluation.limit >= 1, "be >= 1 or None")

    _check("reward.timeout", config.reward.timeout, config.reward.timeout > 0, "be > 0")
    _check("reward.workers", config.reward.workers, config.reward.workers >= 1, "be >= 1")
    _check_functions(config)
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
    _check("run.project", run.project, bool(run.project), "not be empty")
    _check("run.entity", run.entity, run.entity is None or "wandb" in run.sinks, "be None unless wandb is in run.sinks")
    shown = run.sink_samples
    _check("run.sink_samples", shown, shown >= 0, "be >= 0")
    _check(
        "run.sink_samples",
        shown,
        not shown or bool(run.sinks and run.save_samples_every),
        "be 0 without run.sinks and run.save_samples_every",
    )
    _check_method(config)
    check_inert(config)


def _check_embedded(config: TrainConfig) -> None:
    """An embedded task renders its own prompts; the options of rows may still be those of what is evaluated on."""
    data, evaluation = config.data, config.eval
    if not data.train.startswith(PREFIX):
        return
    evaluates_rows = bool(evaluation.suites) or not (evaluation.data or PREFIX).startswith(PREFIX)
    for name in ("revision",) if evaluates_rows else ("revision", *OF_ROWS):
        value, default = getattr(data, name), getattr(DataConfig, name)
        _check(f"data.{name}", value, value == default, f"be its default ({default}) for data.train {data.train}, which does not read it")


def _check_difficulty(config: TrainConfig) -> None:
    options, size = config.difficulty, config.rollout.group_size
    drop, target = options.drop_solved, options.target
    _check("difficulty.drop_solved", drop, drop is None or 0 < drop <= 1, "be in (0, 1] or None")
    _check("difficulty.recheck", options.recheck, options.recheck >= 0, "be >= 0")
    _check("difficulty.recheck", options.recheck, not options.recheck or drop is not None, "be 0 without difficulty.drop_solved")
    _check("difficulty.target", target, target is None or 0 <= target <= 1, "be in [0, 1] or None")
    _check("difficulty.width", options.width, options.width > 0, "be > 0")
    _check("difficulty.boost", options.boost, 1 <= options.boost < math.inf, "be >= 1 and finite")
    _check("difficulty.unsolved", options.unsolved, 0 < options.unsolved <= 1, "be in (0, 1]")
    _check("difficulty.min_group", options.min_group, 2 <= options.min_group <= size, f"be in [2, rollout.group_size = {size}]")
    _check("difficulty.decay", options.decay, 0 <= options.decay < 1, "be in [0, 1)")
    rounds = config.rollout.refill_rounds
    _check("rollout.refill_rounds", rounds, not rounds or options.boost == 1, "be 0 with difficulty.boost, whose groups differ in size")


def _check_functions(config: TrainConfig) -> None:
    reward = config.reward
    named = (reward.kind, *reward.functions)
    _check(
        "reward.functions", reward.functions, len(set(named)) == len(named), f"name each function once, and not reward.kind ({reward.kind})"
    )
    given = len(reward.weights) in (0, len(named))
    _check("reward.weights", reward.weights, given, f"be empty or one of reward.kind and each of reward.functions ({len(named)})")
    _check("reward.weights", reward.weights, all(map(math.isfinite, reward.weights)), "be finite")
    _check("reward.weights", reward.weights, not reward.weights or any(reward.weights), "not all be 0")
    _check("reward.request_timeout", reward.request_timeout, 0 < reward.request_timeout < math.inf, "be > 0 and finite")
    _check("reward.retries", reward.retries, reward.retries >= 0, "be >= 0")


def _check_method(config: TrainConfig) -> None:
    method, kind, rollout, objective = method_of(config), config.method.kind, config.rollout, config.objective
    check_method(method, given=GIVEN, on_policy=config.optim.updates_per_step == 1)
    known = not rollout.refill_rounds or rollout.refill != "no_signal" or not needs_pass(method)
    _check("rollout.refill", rollout.refill, known, f"be zero_variance for method.kind {kind}, which needs a forward pass")
    whole = rollout.top_p == 1 or not also_needs(method) & {"kept_entropy", "mean_surprise"}
    _check("rollout.top_p", rollout.top_p, whole, f"be 1 for method.kind {kind}, which reads the whole distribution")
    apart = not objective.kl_coef or "divergence_coef" not in moves(method)
    _check("objective.kl_coef", objective.kl_coef, apart, f"be 0 for method.kind {kind}, which has a divergence of its own")
    _check("rollout.top_p", rollout.top_p, rollout.top_p == 1 or not objective.kl_coef, "be 1 for objective.kl_coef > 0")
    ppo = objective.kind == "ppo" or "dual_clip" not in moves(method)
    _check("objective.kind", objective.kind, ppo, f"be ppo for method.kind {kind}, which moves dual_clip")


def _check_ahead(config: TrainConfig) -> None:
    ahead, mismatch = config.rollout.ahead, config.objective.mismatch
    _check("rollout.ahead", ahead, ahead in (0, 1), "be 0 or 1")
    own = config.rollout.backend == "vllm_server" and bool(config.vllm.urls)
    _check("rollout.ahead", ahead, own or not ahead, "be 0 unless rollout.backend is vllm_server with vllm.urls, on GPUs of their own")
    _check("objective.mismatch", mismatch, mismatch != "off" or not ahead, "not be off with rollout.ahead 1, whose samples are a step old")


def _check_vllm(config: TrainConfig) -> None:
    vllm, server, needed = config.vllm, config.rollout.backend == "vllm_server", config.rollout.max_new_tokens + 1
    tolerance, length = vllm.probe_tolerance, vllm.max_model_len
    _check("vllm.probe_tolerance", tolerance, tolerance is None or tolerance > 0, "be > 0 or None")
    _check("vllm.max_model_len", length, length is None or length >= needed, f"be > rollout.max_new_tokens ({needed - 1}) or None")
    _check("vllm.gpu_memory_utilization", vllm.gpu_memory_utilization, 0 < vllm.gpu_memory_utilization <= 1, "be in (0, 1]")
    for name in ("tensor_parallel_size", "data_parallel_size"):
        size = getattr(vllm, name)
        _check(f"vllm.{name}", size, size >= 1 and (size == 1 or (server and not vllm.urls)), "be 1, or >= 1 for a server that is started")
    _check("vllm.urls", vllm.urls, server or not vllm.urls, "be empty unless rollout.backend is vllm_server")
    for url in vllm.urls:
        known = url.startswith(("http://", "https://", "http+unix://"))
        _check("vllm.urls", url, known, "each start with http://, https:// or http+unix://")
    for name in ("start_timeout", "request_timeout"):
        _check(f"vllm.{name}", getattr(vllm, name), getattr(vllm, name) > 0, "be > 0")
    route, given = vllm.weight_transfer, bool(vllm.urls)
    _check("vllm.weight_transfer", route, route != "ipc" or not given, "not be ipc for vllm.urls")
    _check("vllm.weight_transfer", route, route != "nccl" or given, "not be nccl without vllm.urls (that server is on the trainer's GPU)")
    for arg in vllm.engine_args:
        _check("vllm.engine_args", arg, is_named_value(arg), "each be name=value")


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _check(name: str, value: object, ok: bool, rule: str) -> None:
    if not ok:
        raise ValueError(f"{name} must {rule}, got {value}")
