"""What learns, and from what loss."""

from __future__ import annotations

from dataclasses import is_dataclass
from math import inf

from aer_kernels.methods import check_method
from aer_kernels.methods.seam import also_needs, moves, needs_pass
from aer_train.config.method import GIVEN, method_of
from aer_train.config.rules.check import check
from aer_train.config.tree import TrainConfig


def check_model(config: TrainConfig) -> None:
    model = config.model
    check("model.lora_rank", model.lora_rank, model.lora_rank >= 0, "be >= 0")
    thin = model.param_dtype == "float32" or model.dtype != "float32"
    check("model.param_dtype", model.param_dtype, thin, "be float32 for model.dtype float32")
    own = model.param_dtype == "float32" or not model.lora_rank
    check("model.param_dtype", model.param_dtype, own, "be float32 with model.lora_rank > 0")
    check("model.lora_alpha", model.lora_alpha, model.lora_alpha >= 1, "be >= 1")
    check("model.lora_targets", list(model.lora_targets), all(model.lora_targets) and bool(model.lora_targets), "name at least one layer")


def check_objective(config: TrainConfig) -> None:
    objective = config.objective
    check("objective.clip_low", objective.clip_low, objective.clip_low >= 0, "be >= 0")
    check("objective.clip_high", objective.clip_high, objective.clip_high >= 0, "be >= 0")
    dual = objective.dual_clip
    check("objective.dual_clip", dual, dual is None or dual > 1, "be > 1 or None")
    check("objective.dual_clip", dual, dual is None or objective.kind == "ppo", f"be None for objective.kind {objective.kind}")
    gspo_ok = objective.kind != "gspo" or objective.aggregation == "sequence_mean"
    check("objective.aggregation", objective.aggregation, gspo_ok, "be sequence_mean for objective.kind gspo")
    weights_ok = objective.kind != "gspo" or not objective.mismatch.startswith("token")
    check("objective.mismatch", objective.mismatch, weights_ok, "be of the whole sequence (or off, or auto) for objective.kind gspo")
    check("objective.mismatch_cap", objective.mismatch_cap, objective.mismatch_cap >= 1, "be >= 1")
    check("objective.kl_coef", objective.kl_coef, 0 <= objective.kl_coef < inf, "be >= 0")


def check_optim(config: TrainConfig) -> None:
    optim = config.optim
    check("optim.lr", optim.lr, optim.lr > 0, "be > 0")
    check("optim.betas", optim.betas, all(0 <= beta < 1 for beta in optim.betas), "be in [0, 1)")
    check("optim.weight_decay", optim.weight_decay, optim.weight_decay >= 0, "be >= 0")
    check("optim.grad_clip", optim.grad_clip, optim.grad_clip > 0, "be > 0")
    check("optim.warmup_steps", optim.warmup_steps, optim.warmup_steps >= 0, "be >= 0")
    check("optim.prompts_per_step", optim.prompts_per_step, optim.prompts_per_step >= 1, "be >= 1")
    divides = optim.updates_per_step >= 1 and optim.prompts_per_step % optim.updates_per_step == 0
    check("optim.updates_per_step", optim.updates_per_step, divides, f"divide optim.prompts_per_step ({optim.prompts_per_step})")
    tokens = optim.tokens_per_microbatch
    check("optim.tokens_per_microbatch", tokens, tokens is None or tokens >= 1, "be >= 1 or None")
    memory = optim.loss_memory_mib
    check("optim.loss_memory_mib", memory, memory is None or memory >= 1, "be >= 1 or None")


def check_methods(config: TrainConfig) -> None:
    method, kind, rollout, objective = method_of(config), config.method.kind, config.rollout, config.objective
    check_method(method, given=GIVEN, on_policy=config.optim.updates_per_step == 1)
    known = not rollout.refill_rounds or rollout.refill != "no_signal" or not needs_pass(method)
    check("rollout.refill", rollout.refill, known, f"be zero_variance for method.kind {kind}, which needs a forward pass")
    whole = rollout.top_p == 1 or not also_needs(method) & {"kept_entropy", "mean_surprise"}
    check("rollout.top_p", rollout.top_p, whole, f"be 1 for method.kind {kind}, which reads the whole distribution")
    apart = not objective.kl_coef or "divergence_coef" not in moves(method)
    check("objective.kl_coef", objective.kl_coef, apart, f"be 0 for method.kind {kind}, which has a divergence of its own")
    check("rollout.top_p", rollout.top_p, rollout.top_p == 1 or not objective.kl_coef, "be 1 for objective.kl_coef > 0")
    ppo = objective.kind == "ppo" or "dual_clip" not in moves(method)
    check("objective.kind", objective.kind, ppo, f"be ppo for method.kind {kind}, which moves dual_clip")


def check_patience(config: TrainConfig) -> None:
    """Prompts that are chosen by how hard they are do not say whether the policy learns; the methods of "a+b" have options of their own."""
    chosen = config.difficulty.target is not None or config.difficulty.drop_solved is not None
    parts = {"method": config.method} | {f"method.{name}": part for name, part in vars(config.method).items() if is_dataclass(part)}
    for name, part in parts.items():
        patience = getattr(part, "patience", None)
        rule = "be None with difficulty.target or drop_solved: both change what is unsolved"
        check(f"{name}.patience", patience, patience is None or not chosen, rule)
