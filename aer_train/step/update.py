"""The optimizer updates of one step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from aer_kernels.methods import Measured, Method
from aer_kernels.methods.seam import also_needs
from aer_kernels.objectives.entropy_change import EntropySlopes
from aer_train import dist, sharding
from aer_train.clock import Clock
from aer_train.config.tree import OptimConfig, TrainConfig
from aer_train.model import Policy
from aer_train.seeds import sample_seed
from aer_train.step.gradient_share import gradient_share, take_gradients
from aer_train.step.mismatch import ONE_PASS, mismatch_kind, mismatch_metrics
from aer_train.step.objective import sampling_floor
from aer_train.step.optimizer import take_step
from aer_train.step.passes import Passes
from aer_train.step.scores import Scores, score
from aer_train.step.tokens import Weighed
from aer_train.step.totals import Totals
from aer_train.step.weighing import weigh_again


@dataclass(frozen=True)
class UpdateResult:
    """What was measured during the updates."""

    measured: Measured
    """What the method is told, without the share of unsolved prompts."""
    num_tokens: int
    """Loss tokens."""
    slopes: dict[str, float]
    """Sums over the loss tokens by field of `EntropySlopes`."""
    metrics: dict[str, float | None]
    """None where there was nothing to measure."""


def update_policy(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    weighed: Weighed,
    config: TrainConfig,
    step: int,
    clock: Clock | None = None,
    scores: Scores | None = None,
    method: Method | None = None,
) -> UpdateResult:
    """Make optim.updates_per_step updates, each on an equal share of the prompts.

    The first update is on-policy: its own forward pass gives the log-probs that its ratios would need, and they are 1. Only the samples of
    later updates need a pass of the policy that sampled, and all samples where importance weights are more than a bound on each token's.

    A sample without a gradient is in no training pass, though it counts in every denominator; `Passes` says what measures it. An update
    without any sample that has one is left out: the optimizer and its state do not move.

    Args:
        step: 1-based; chooses the learning rate.
        clock: gets the parts old_logprobs and train.
        scores: of all trained samples, where the method needed them.
        method: needed where it reads hidden states, or the present policy's entropies.
    Raises:
        FloatingPointError - the loss or the gradient norm is not finite; that update was not applied.
    """
    clock = clock or Clock()
    updates, samples = config.optim.updates_per_step, weighed.samples
    parts = weighed.batch.shares(updates)
    on_policy = 1 if mismatch_kind(config) in ONE_PASS else 0
    passes = Passes(policy, weighed, config, Totals(policy.device), method)
    again = method is not None and "current_entropy" in also_needs(method)
    with clock.part("old_logprobs"):
        later = [row for part in parts[on_policy:] for row in part if passes.counts(row)]
        passes.take(score(policy, samples, later, config, sampling_floor(config)) if scores is None else scores)
    losses, norms, shares, rate, live = [0.0] * updates, [0.0] * updates, list[float](), 0.0, 0
    with clock.part("train"):
        for update, rows in enumerate(parts):
            rate = learning_rate(config.optim, (step - 1) * updates + update, config.run.steps * updates)
            if rows and again and update and method is not None:
                passes.weigh(weigh_again(policy, method, weighed, rows, config))
            passes.look(rows, update >= on_policy)
            if passes.live(rows):
                seed = sample_seed(config.run.seed, "rounding", step, update)
                losses[update], norms[update], bonus = _update(passes, optimizer, rows, update >= on_policy, rate, step, seed)
                shares += [] if bonus is None else [bonus]
            live += len(passes.live(rows))
        sums = passes.totals.read()
    return _result(sums, weighed, config, losses, norms, shares, rate, live)


def learning_rate(config: OptimConfig, update: int, total: int) -> float:
    """Return the learning rate of an update (0-based) out of `total`: linear warm-up, then the schedule, 0 at the last update."""
    if update < config.warmup_steps:
        return config.lr * (update + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (update + 1 - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.lr * (1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress)))


def _update(
    passes: Passes, optimizer: torch.optim.Optimizer, rows: list[int], off_policy: bool, rate: float, step: int, seed: int
) -> tuple[float, float, float | None]:
    """One optimizer update on these rows; returns its loss, the norm of its gradient and the bonus' share of that where it is measured, the
    same on every rank."""
    every, parameters = passes.config.run.bonus_share_every, list(passes.policy.model.parameters())
    measured = every > 0 and step % every == 0
    if measured:
        nothing = np.zeros_like(passes.columns.advantages)
        alone = replace(passes.columns, advantages=nothing, divergence_coef=None, reference=None, statistic_coef=None)
        passes.backward(rows, off_policy, alone, Totals(passes.policy.device))
        bonus = take_gradients(parameters)
    loss = passes.backward(rows, off_policy, passes.columns, passes.totals)
    share = gradient_share(bonus, parameters) if measured else None
    norm = sharding.whole(torch.nn.utils.clip_grad_norm_(parameters, passes.config.optim.grad_clip))
    everywhere = dist.all_gather(torch.stack([loss, norm.double()]).tolist())
    values = math.fsum(share for share, _ in everywhere), everywhere[0][1]
    for name, value in zip(("loss", "gradient norm"), values, strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} must be finite, got {value} at step {step}; this update was not applied: lower optim.lr, and go on with --resume"
            )
    take_step(optimizer, rate, seed)
    return *values, share


def _result(
    sums: dict[str, float],
    weighed: Weighed,
    config: TrainConfig,
    losses: list[float],
    norms: list[float],
    shares: list[float],
    rate: float,
    live: int,
) -> UpdateResult:
    num_tokens, num_responses, updates = weighed.layout.size, len(weighed.layout.rows), len(losses)
    metrics = {
        "policy/loss": math.fsum(losses) / updates,
        "policy/clip_frac": _mean(sums, "clip_frac", sums["weight"]),
        "policy/ratio_mean": _mean(sums, "ratio_mean", sums["weight"]),
        "policy/ratio_max": sums["ratio_max"],
        "optim/grad_norm": math.fsum(norms) / updates,
        "optim/lr": rate,
        "optim/dead_frac": 1.0 - live / num_responses if num_responses else None,
        "entropy/mean": _mean(sums, "entropy", num_tokens),
        "entropy/per_response": _mean(sums, "entropy", num_responses),
        "tokens/padding_frac": _mean(sums, "padding", sums["positions"]),
        **mismatch_metrics(sums, round(sums["measured"])),
    }
    if config.objective.kind != "gspo":
        metrics["policy/approx_kl"] = _mean(sums, "approx_kl", sums["weight"])
    if weighed.reference is not None:
        metrics["policy/kl_ref"] = _mean(sums, "ref_kl", num_tokens)
    if shares:
        metrics["optim/bonus_share"] = math.fsum(shares) / len(shares)
    slopes = {name: sums[name] for name in EntropySlopes._fields}
    measured = Measured(sums["held"], sums["held_tokens"], sums["held_responses"], slopes=(slopes["policy"], slopes["bonus"]))
    return UpdateResult(measured, num_tokens, slopes, metrics)


def _mean(sums: dict[str, float], name: str, count: float) -> float | None:
    return sums[name] / count if count else None
