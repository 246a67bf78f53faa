"""The optimizer updates of one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aer_train.batching import MicroBatch, micro_batches, response_slice
from aer_train.config import OptimConfig, TrainConfig
from aer_train.loss import denominators, measure, policy_loss
from aer_train.model import Policy
from aer_train.types import Prompt, Sample
from aer_train.verify import Verdict


@dataclass(frozen=True)
class Batch:
    """The samples of one step and what was decided about them: one entry a sample, ordered by prompt."""

    prompts: list[Prompt]
    samples: list[Sample]
    verdicts: list[Verdict]
    advantages: list[float]
    entropy_coef: list[float]
    """alpha * w(q) of the sample's prompt."""


@dataclass(frozen=True)
class UpdateResult:
    """What was measured during the updates."""

    entropy_sum: float
    """Nats, over the loss tokens of the step, of the policy that sampled them."""
    num_tokens: int
    metrics: dict[str, float]


class Sums:
    """Running sums over the micro-batches of a step, by name."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.ratio_max = 0.0

    def add(self, name: str, value: float) -> None:
        self.totals[name] = self.totals.get(name, 0.0) + value

    def add_sampling_policy(self, batch: MicroBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> None:
        """From the pass of the policy that sampled: entropy, and how far its log-probs are from those recorded at sampling."""
        self.add("entropy", entropy.double().sum().item())
        self.add("mismatch", (logprobs - batch.rollout_logprobs).abs().double().sum().item())

    def mean(self, name: str, weight: str) -> float:
        return self.totals[name] / self.totals[weight]


def update_policy(policy: Policy, optimizer: torch.optim.Optimizer, batch: Batch, config: TrainConfig, step: int) -> UpdateResult:
    """Make optim.updates_per_step updates, each on an equal share of the prompts; several need the log-probs of the policy that sampled.

    Args:
        step: 1-based; chooses the learning rate.
    Raises:
        FloatingPointError - the loss or the gradient norm is not finite; that update was not applied.
    """
    updates = config.optim.updates_per_step
    sums = Sums()
    old_logprobs = None if updates == 1 else _sampling_logprobs(policy, batch, config, sums)
    share = len(batch.samples) // updates
    losses, norms, rate = [], [], 0.0
    for update in range(updates):
        rows = range(update * share, (update + 1) * share)
        loss = _backward(policy, batch, rows, old_logprobs, config, sums)
        norm = torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.optim.grad_clip).item()
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} must be finite, got {value} at step {step}; this update was not applied")
        rate = learning_rate(config.optim, (step - 1) * updates + update, config.run.steps * updates)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        norms.append(norm)
    num_tokens = sum(len(sample.tokens) for sample in batch.samples)
    metrics = {
        "policy/loss": math.fsum(losses) / updates,
        "policy/clip_frac": sums.mean("clip_frac", "weight"),
        "policy/ratio_mean": sums.mean("ratio_mean", "weight"),
        "policy/ratio_max": sums.ratio_max,
        "optim/grad_norm": math.fsum(norms) / updates,
        "optim/lr": rate,
        "entropy/mean": sums.totals["entropy"] / num_tokens,
        "entropy/per_response": sums.totals["entropy"] / len(batch.samples),
        "rollout/mismatch_mean": sums.totals["mismatch"] / num_tokens,
    }
    if "approx_kl" in sums.totals:
        metrics["policy/approx_kl"] = sums.mean("approx_kl", "weight")
    return UpdateResult(sums.totals["entropy"], num_tokens, metrics)


def learning_rate(config: OptimConfig, update: int, total: int) -> float:
    """Return the learning rate of an update (0-based) out of `total`: linear warm-up, then the schedule, 0 at the last update."""
    if update < config.warmup_steps:
        return config.lr * (update + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (update + 1 - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.lr * (1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress)))


def _backward(policy: Policy, batch: Batch, rows: range, old_logprobs: list[list[float]] | None, config: TrainConfig, sums: Sums) -> float:
    """Accumulate the gradient of the update on these rows; returns its loss."""
    denominator = denominators([batch.samples[row] for row in rows], config.objective, config.rollout.max_new_tokens)
    total = 0.0
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
        total += output.loss.item()
        if old_logprobs is None:
            sums.add_sampling_policy(micro, output.logprobs, output.entropy)
        weight = len(micro.rows) if config.objective.kind == "gspo" else micro.loss_mask.sum().item()
        sums.add("weight", weight)
        for name in ("clip_frac", "ratio_mean", "approx_kl"):
            if name in output.metrics:
                sums.add(name, weight * output.metrics[name].item())
        sums.ratio_max = max(sums.ratio_max, output.metrics["ratio_max"].item())
    return total


def _sampling_logprobs(policy: Policy, batch: Batch, config: TrainConfig, sums: Sums) -> list[list[float]]:
    """Log-probs of the response tokens of every sample before the first update."""
    found: list[list[float]] = [[] for _ in batch.samples]
    for micro in _pack(policy, batch, range(len(batch.samples)), None, config):
        logprobs, entropy = measure(policy, micro, temperature=config.rollout.temperature, memory_budget=loss_memory(config))
        sums.add_sampling_policy(micro, logprobs, entropy)
        for row, values in zip(micro.rows, logprobs.tolist(), strict=True):
            found[row] = values[response_slice(batch.samples[row])]
    return found


def _pack(
    policy: Policy, batch: Batch, rows: range, old_logprobs: Sequence[Sequence[float]] | None, config: TrainConfig
) -> list[MicroBatch]:
    chosen = slice(rows.start, rows.stop)
    return micro_batches(
        batch.samples[chosen],
        batch.advantages[chosen],
        batch.entropy_coef[chosen],
        None if old_logprobs is None else old_logprobs[chosen],
        tokens_per_microbatch=config.optim.tokens_per_microbatch,
        pad_id=policy.tokenizer.pad_token_id,
        device=policy.device,
    )


def loss_memory(config: TrainConfig) -> int | None:
    """Return optim.loss_memory_mib in bytes."""
    return None if config.optim.loss_memory_mib is None else config.optim.loss_memory_mib << 20
