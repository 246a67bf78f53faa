"""The optimizer updates of one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aer_train.batching import MicroBatch, micro_batches, response_slice
from aer_train.clock import Clock
from aer_train.config import OptimConfig, TrainConfig
from aer_train.loss import denominators, measure, policy_loss
from aer_train.model import Policy
from aer_train.types import Batch


@dataclass(frozen=True)
class UpdateResult:
    """What was measured during the updates."""

    entropy_sum: float
    """Nats, over the loss tokens of the step, of the policy that sampled them."""
    num_tokens: int
    """Loss tokens."""
    metrics: dict[str, float]


class Totals:
    """Sums, and one maximum, over the micro-batches of a step. They stay on the device until `read`, so that it is not waited for."""

    def __init__(self, device: torch.device) -> None:
        self._sums: dict[str, Tensor] = {}
        self._ratio_max = torch.zeros((), device=device)

    def add(self, name: str, value: Tensor | float) -> None:
        """Add a 0-dim value in float64."""
        new = torch.as_tensor(value, dtype=torch.float64, device=self._ratio_max.device)
        self._sums[name] = self._sums[name] + new if name in self._sums else new

    def add_ratio_max(self, value: Tensor) -> None:
        self._ratio_max = torch.maximum(self._ratio_max, value)

    def add_sampling_policy(self, batch: MicroBatch, logprobs: Tensor, entropy: Tensor) -> None:
        """From the pass of the policy that sampled: entropy, and how far its log-probs are from those recorded at sampling."""
        self.add("entropy", entropy.double().sum())
        self.add("mismatch", (logprobs - batch.rollout_logprobs).abs().double().sum())

    def read(self) -> dict[str, float]:
        """Return all of them, ratio_max included."""
        values = torch.stack([*self._sums.values(), self._ratio_max.double()]).tolist()
        return dict(zip([*self._sums, "ratio_max"], values, strict=True))


def update_policy(
    policy: Policy, optimizer: torch.optim.Optimizer, batch: Batch, config: TrainConfig, step: int, clock: Clock | None = None
) -> UpdateResult:
    """Make optim.updates_per_step updates, each on an equal share of the prompts; several need the log-probs of the policy that sampled.

    Args:
        step: 1-based; chooses the learning rate.
        clock: gets the parts old_logprobs and train.
    Raises:
        FloatingPointError - the loss or the gradient norm is not finite; that update was not applied.
    """
    clock = clock or Clock()
    updates = config.optim.updates_per_step
    totals = Totals(policy.device)
    old_logprobs = None
    if updates > 1:
        with clock.part("old_logprobs"):
            old_logprobs = _sampling_logprobs(policy, batch, config, totals)
    share = len(batch.samples) // updates
    losses, norms, rate = [], [], 0.0
    with clock.part("train"):
        for update in range(updates):
            rows = _trained(batch, range(update * share, (update + 1) * share))
            rate = learning_rate(config.optim, (step - 1) * updates + update, config.run.steps * updates)
            loss, norm = _update(policy, optimizer, batch, rows, old_logprobs, config, totals, rate, step)
            losses.append(loss)
            norms.append(norm)
        rows = _trained(batch, range(len(batch.samples)))
        num_tokens = sum(len(batch.samples[row].tokens) for row in rows)
        sums = totals.read()
    metrics = {
        "policy/loss": math.fsum(losses) / updates,
        "policy/clip_frac": sums["clip_frac"] / sums["weight"],
        "policy/ratio_mean": sums["ratio_mean"] / sums["weight"],
        "policy/ratio_max": sums["ratio_max"],
        "optim/grad_norm": math.fsum(norms) / updates,
        "optim/lr": rate,
        "entropy/mean": sums["entropy"] / num_tokens,
        "entropy/per_response": sums["entropy"] / len(rows),
        "rollout/mismatch_mean": sums["mismatch"] / num_tokens,
    }
    if "approx_kl" in sums:
        metrics["policy/approx_kl"] = sums["approx_kl"] / sums["weight"]
    return UpdateResult(sums["entropy"], num_tokens, metrics)


def learning_rate(config: OptimConfig, update: int, total: int) -> float:
    """Return the learning rate of an update (0-based) out of `total`: linear warm-up, then the schedule, 0 at the last update."""
    if update < config.warmup_steps:
        return config.lr * (update + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (update + 1 - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.lr * (1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress)))


def _update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    rows: list[int],
    old_logprobs: list[list[float]] | None,
    config: TrainConfig,
    totals: Totals,
    rate: float,
    step: int,
) -> tuple[float, float]:
    """One optimizer update on these rows; returns its loss and the norm of its gradient."""
    loss = _backward(policy, batch, rows, old_logprobs, config, totals)
    norm = torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.optim.grad_clip)
    values = torch.stack([loss, norm.double()]).tolist()
    for name, value in zip(("loss", "gradient norm"), values, strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} must be finite, got {value} at step {step}; this update was not applied")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return values[0], values[1]


def _backward(
    policy: Policy, batch: Batch, rows: list[int], old_logprobs: list[list[float]] | None, config: TrainConfig, totals: Totals
) -> Tensor:
    """Accumulate the gradient of the update on these rows; returns its loss, float64."""
    denominator = denominators([batch.samples[row] for row in rows], config.objective, config.rollout.max_new_tokens)
    total = torch.zeros((), dtype=torch.float64, device=policy.device)
    for micro in _pack(policy, batch, rows, old_logprobs, config):
        output = policy_loss(
            policy,
            micro,
            config.objective,
            denominator,
            temperature=config.rollout.temperature,
            memory_budget=loss_memory(config),
        )
        output.loss.backward()
        total += output.loss.detach()
        if old_logprobs is None:
            totals.add_sampling_policy(micro, output.logprobs, output.entropy)
        weight = float(len(micro.rows) if config.objective.kind == "gspo" else micro.loss_tokens)
        totals.add("weight", weight)
        for name in ("clip_frac", "ratio_mean", "approx_kl"):
            if name in output.metrics:
                totals.add(name, weight * output.metrics[name].double())
        totals.add_ratio_max(output.metrics["ratio_max"])
    return total


def _sampling_logprobs(policy: Policy, batch: Batch, config: TrainConfig, totals: Totals) -> list[list[float]]:
    """Log-probs of the response tokens of every trained sample before the first update."""
    found: list[list[float]] = [[] for _ in batch.samples]
    rows = _trained(batch, range(len(batch.samples)))
    for micro in _pack(policy, batch, rows, None, config):
        logprobs, entropy = measure(policy, micro, temperature=config.rollout.temperature, memory_budget=loss_memory(config))
        totals.add_sampling_policy(micro, logprobs, entropy)
        for row, values in zip(micro.rows, logprobs.tolist(), strict=False):
            found[rows[row]] = values[response_slice(batch.samples[rows[row]])]
    return found


def _trained(batch: Batch, rows: range) -> list[int]:
    return [row for row in rows if batch.trained[row]]


def _pack(
    policy: Policy, batch: Batch, rows: list[int], old_logprobs: Sequence[Sequence[float]] | None, config: TrainConfig
) -> list[MicroBatch]:
    return micro_batches(
        [batch.samples[row] for row in rows],
        [batch.advantages[row] for row in rows],
        [batch.entropy_coef[row] for row in rows],
        None if old_logprobs is None else [old_logprobs[row] for row in rows],
        tokens_per_microbatch=config.optim.tokens_per_microbatch,
        pad_id=policy.tokenizer.pad_token_id,
        device=policy.device,
    )


def loss_memory(config: TrainConfig) -> int | None:
    """Return optim.loss_memory_mib in bytes."""
    return None if config.optim.loss_memory_mib is None else config.optim.loss_memory_mib << 20
