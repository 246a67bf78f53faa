"""The optimizer updates of one step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aer_kernels.objectives.entropy_change import EntropySlopes, entropy_slopes
from aer_train import dist, sharding
from aer_train.batching import MicroBatch, micro_batches, response_slice
from aer_train.clock import Clock
from aer_train.config import OptimConfig, TrainConfig
from aer_train.gradient_share import gradient_share, take_gradients
from aer_train.loss import Denominators, denominators, measure, policy_loss, policy_token_weights
from aer_train.mismatch import MAXIMA, ONE_PASS, SUMS, mismatch_kind, mismatch_metrics, mismatch_terms
from aer_train.model import Policy
from aer_train.types import Batch


@dataclass(frozen=True)
class UpdateResult:
    """What was measured during the updates."""

    entropy_sum: float
    """Nats, over the loss tokens of the step, of the policy that sampled them; each as its sample is held (`Batch.held`)."""
    entropy_count: float
    """Those tokens, or the responses that they make up (entropy.quantity), each as it is held."""
    num_tokens: int
    """Loss tokens."""
    slopes: dict[str, float]
    """Sums over the loss tokens by field of `EntropySlopes`."""
    metrics: dict[str, float | None]
    """None where there was nothing to measure."""


class Totals:
    """Sums and maxima over the micro-batches of a step. They stay on the device until `read`, so that it is not waited for."""

    HELD = ("held", "held_tokens", "held_responses")
    MEANS = ("clip_frac", "ratio_mean", "approx_kl")
    NAMES = ("entropy", *HELD, *EntropySlopes._fields, *SUMS, "weight", *MEANS, "positions", "padding")
    LARGEST = ("ratio_max", *MAXIMA)

    def __init__(self, device: torch.device) -> None:
        self._sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in self.NAMES}
        self._maxima = {name: torch.zeros((), dtype=torch.float64, device=device) for name in self.LARGEST}

    def add_sampling_policy(self, batch: MicroBatch, held: Tensor, logprobs: Tensor, entropy: Tensor, config: TrainConfig) -> None:
        """From the pass of the policy that sampled: entropy, and how far its log-probs are from those recorded at sampling.

        Args:
            held: (B,) float64, how much the entropy of each row counts.
        """
        self._sums["entropy"] += entropy.double().sum()
        for name, values in zip(self.HELD, (entropy.double(), batch.loss_mask, torch.ones_like(batch.loss_mask[:, :1])), strict=True):
            self._sums[name] += (held[:, None] * values).sum()
        kind, cap = mismatch_kind(config), config.objective.mismatch_cap
        terms = mismatch_terms(logprobs, batch.rollout_logprobs, batch.loss_mask, kind, cap)
        for name in SUMS:
            self._sums[name] += terms[name]
        for name in MAXIMA:
            self._maxima[name] = torch.maximum(self._maxima[name], terms[name])

    def add_slopes(self, batch: MicroBatch, advantages: Tensor, weights: Tensor, logprobs: Tensor, entropy: Tensor) -> None:
        """From the same pass: where policy gradient and bonus move the entropy.

        Args:
            advantages: (B, 1) as they weigh in the policy term.
            weights: (B,) what alpha is multiplied by.
        """
        slopes = entropy_slopes(logprobs, entropy, advantages=advantages, weights=weights[:, None], loss_mask=batch.loss_mask)
        for name, slope in zip(slopes._fields, slopes, strict=True):
            self._sums[name] += slope

    def add_update(self, batch: MicroBatch, metrics: dict[str, Tensor], weight: float) -> None:
        """From the pass of an update: means over `weight` tokens (or responses), and how much of the pass was padding."""
        self._sums["positions"] += batch.input_ids.numel()
        self._sums["padding"] += batch.padding
        self._sums["weight"] += weight
        for name in self.MEANS:
            if name in metrics:
                self._sums[name] += weight * metrics[name].double()
        self._maxima["ratio_max"] = torch.maximum(self._maxima["ratio_max"], metrics["ratio_max"].double())

    def read(self) -> dict[str, float]:
        """Return all of them by name, over the micro-batches of all ranks."""
        names = [*self._sums, *self._maxima]
        everywhere = zip(*dist.all_gather(torch.stack([*self._sums.values(), *self._maxima.values()]).tolist()), strict=True)
        return {name: max(values) if name in self._maxima else math.fsum(values) for name, values in zip(names, everywhere, strict=True)}


def update_policy(
    policy: Policy, optimizer: torch.optim.Optimizer, batch: Batch, config: TrainConfig, step: int, clock: Clock | None = None
) -> UpdateResult:
    """Make optim.updates_per_step updates, each on an equal share of the prompts.

    The first update is on-policy: its own forward pass gives the log-probs that its ratios would need, and they are 1. Only the samples of
    later updates need a pass of the policy that sampled, and all samples where importance weights are more than a bound on each token's.

    Args:
        step: 1-based; chooses the learning rate.
        clock: gets the parts old_logprobs and train.
    Raises:
        FloatingPointError - the loss or the gradient norm is not finite; that update was not applied.
    """
    clock = clock or Clock()
    updates, share = config.optim.updates_per_step, len(batch.samples) // config.optim.updates_per_step
    parts = [[row for row in range(u * share, (u + 1) * share) if batch.trained[row]] for u in range(updates)]
    totals, on_policy = Totals(policy.device), 1 if mismatch_kind(config) in ONE_PASS else 0
    with clock.part("old_logprobs"):
        old_logprobs = _sampling_logprobs(policy, batch, [row for part in parts[on_policy:] for row in part], config, totals)
    losses, norms, shares, rate = [0.0] * updates, [0.0] * updates, list[float](), 0.0
    with clock.part("train"):
        for update, rows in enumerate(parts):
            rate = learning_rate(config.optim, (step - 1) * updates + update, config.run.steps * updates)
            if rows:  # else every response of this share is masked: nothing to learn from
                old = old_logprobs if update >= on_policy else None
                losses[update], norms[update], bonus = _update(policy, optimizer, batch, rows, old, config, totals, rate, step)
                shares += [] if bonus is None else [bonus]
        sums = totals.read()
    num_tokens = sum(len(batch.samples[row].tokens) for part in parts for row in part)
    num_responses = sum(map(len, parts))
    metrics = {
        "policy/loss": math.fsum(losses) / updates,
        "policy/clip_frac": _mean(sums, "clip_frac", sums["weight"]),
        "policy/ratio_mean": _mean(sums, "ratio_mean", sums["weight"]),
        "policy/ratio_max": sums["ratio_max"],
        "optim/grad_norm": math.fsum(norms) / updates,
        "optim/lr": rate,
        "entropy/mean": _mean(sums, "entropy", num_tokens),
        "entropy/per_response": _mean(sums, "entropy", num_responses),
        "tokens/padding_frac": _mean(sums, "padding", sums["positions"]),
        **mismatch_metrics(sums, num_tokens),
    }
    if config.objective.kind != "gspo":
        metrics["policy/approx_kl"] = _mean(sums, "approx_kl", sums["weight"])
    if shares:
        metrics["optim/bonus_share"] = math.fsum(shares) / len(shares)
    count = sums["held_tokens" if config.entropy.quantity == "token" else "held_responses"]
    return UpdateResult(sums["held"], count, num_tokens, {name: sums[name] for name in EntropySlopes._fields}, metrics)


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
    old_logprobs: dict[int, list[float]] | None,
    config: TrainConfig,
    totals: Totals,
    rate: float,
    step: int,
) -> tuple[float, float, float | None]:
    """One optimizer update on these rows; returns its loss, the norm of its gradient and the bonus' share of that where it is measured, the
    same on every rank."""
    every, parameters = config.run.bonus_share_every, list(policy.model.parameters())
    measured = every > 0 and step % every == 0
    if measured:
        alone = replace(batch, advantages=[0.0] * len(batch.advantages))
        _backward(policy, alone, rows, old_logprobs, config, Totals(policy.device))
        bonus = take_gradients(parameters)
    loss = _backward(policy, batch, rows, old_logprobs, config, totals)
    share = gradient_share(bonus, parameters) if measured else None
    norm = sharding.whole(torch.nn.utils.clip_grad_norm_(parameters, config.optim.grad_clip))
    everywhere = dist.all_gather(torch.stack([loss, norm.double()]).tolist())
    values = math.fsum(share for share, _ in everywhere), everywhere[0][1]
    for name, value in zip(("loss", "gradient norm"), values, strict=True):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} must be finite, got {value} at step {step}; this update was not applied: lower optim.lr, and go on with --resume"
            )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return *values, share


def _backward(
    policy: Policy, batch: Batch, rows: list[int], old_logprobs: dict[int, list[float]] | None, config: TrainConfig, totals: Totals
) -> Tensor:
    """Accumulate the gradient of the update on these rows; returns this rank's share of its loss, float64."""
    denominator = denominators([batch.samples[row] for row in rows], config.objective, config.rollout.max_new_tokens)
    total = torch.zeros((), dtype=torch.float64, device=policy.device)
    for micro in _pack(policy, batch, rows, old_logprobs, config):
        output = policy_loss(
            policy,
            micro,
            config.objective,
            denominator,
            temperature=config.rollout.temperature,
            mismatch=mismatch_kind(config),
            memory_budget=loss_memory(config),
        )
        output.loss.backward()
        total += output.loss.detach()
        if old_logprobs is None:
            _add_sampling_policy(totals, batch, rows, micro, output.logprobs, output.entropy, config, denominator)
        totals.add_update(micro, output.metrics, float(len(micro.rows) if config.objective.kind == "gspo" else micro.loss_tokens))
    return total


def _sampling_logprobs(policy: Policy, batch: Batch, rows: list[int], config: TrainConfig, totals: Totals) -> dict[int, list[float]]:
    """Log-probs of the response tokens of these samples before the first update, worked out by all ranks for all ranks."""
    measured = []
    denominator = denominators([batch.samples[row] for row in rows], config.objective, config.rollout.max_new_tokens)
    for micro in _pack(policy, batch, rows, None, config):
        logprobs, entropy = measure(policy, micro, temperature=config.rollout.temperature, memory_budget=loss_memory(config))
        _add_sampling_policy(totals, batch, rows, micro, logprobs, entropy, config, denominator)
        measured.append((micro.rows, logprobs))
    mine = {
        rows[index]: values[response_slice(batch.samples[rows[index]])]
        for indices, logprobs in measured  # read only now: the device need not wait between micro-batches
        for index, values in zip(indices, logprobs.tolist(), strict=False)
    }
    return {row: values for part in dist.all_gather(mine) for row, values in part.items()}


def _pack(
    policy: Policy, batch: Batch, rows: list[int], old_logprobs: dict[int, list[float]] | None, config: TrainConfig
) -> list[MicroBatch]:
    return micro_batches(
        [batch.samples[row] for row in rows],
        [batch.advantages[row] for row in rows],
        [batch.entropy_coef[row] for row in rows],
        None if old_logprobs is None else [old_logprobs[row] for row in rows],
        tokens_per_microbatch=config.optim.tokens_per_microbatch,
        pad_id=policy.tokenizer.pad_token_id,
        device=policy.device,
        rank=dist.rank(),
        world=dist.world(),
    )


def _add_sampling_policy(
    totals: Totals,
    batch: Batch,
    rows: list[int],
    micro: MicroBatch,
    logprobs: Tensor,
    entropy: Tensor,
    config: TrainConfig,
    denominator: Denominators,
) -> None:
    """Add what the pass of the policy that sampled shows of a micro-batch that was packed from `rows`; padding counts for nothing."""
    padding = [0.0] * (len(micro.advantages) - len(micro.rows))
    columns = [[values[rows[index]] for index in micro.rows] + padding for values in (batch.entropy_weight, batch.held)]
    weights, held = torch.tensor(columns, device=entropy.device)
    totals.add_sampling_policy(micro, held.double(), logprobs, entropy, config)
    advantages = micro.advantages[:, None] * policy_token_weights(micro, config.objective, denominator)
    totals.add_slopes(micro, advantages, weights, logprobs, entropy)


def _mean(sums: dict[str, float], name: str, count: float) -> float | None:
    return sums[name] / count if count else None


def loss_memory(config: TrainConfig) -> int | None:
    """Return optim.loss_memory_mib in bytes."""
    return None if config.optim.loss_memory_mib is None else config.optim.loss_memory_mib << 20
