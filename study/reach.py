"""How far a bonus reaches: what a bonus on the prompts of one tier alone does to the entropy of either.

Difficulty weights can move entropy to hard prompts only as far as a bonus stays with the prompts that it is given for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import torch

from aer_kernels import EntropyControlConfig
from aer_kernels.methods import AER
from aer_train.config.method import method_of
from aer_train.config.tree import TrainConfig
from aer_train.model import Policy
from aer_train.rollout.hf import HFRollout
from aer_train.run import checkpoint
from aer_train.step.tokens import Weighed, token_batch, weigh
from aer_train.step.update import update_policy
from aer_train.tasks import builtin_prompts
from aer_train.tasks.prompts import TIERS
from aer_train.types import Batch, Group, Prompt
from study.digits import DIGITS
from study.evaluate import policy_at
from study.intervals import mean
from study.records import Record, by_place
from study.statistics import Estimate
from study.tables import shown

STEPS = 5
"""Training steps with nothing but the bonus."""

COEF = 0.1
"""The coefficient in them."""

SAMPLES = 16
"""Responses a validation prompt by which its entropy is measured."""

Entropies = dict[str, float]
"""Of a response, in nats, by tier."""

Reach = dict[str, Entropies]
"""What a bonus on a tier adds to the entropies, by that tier."""


def reach(run: Path, config: TrainConfig, step: int) -> Reach:
    """Train a checkpoint of a run on with a bonus on the prompts of one tier, with neither rewards nor momentum, and return how much the
    entropy of a response to validation prompts rises."""
    folder = run / "checkpoints" / f"step_{step:06d}"
    before = _entropies(policy_at(folder, config), config)
    return {tier: {of: round(after - before[of], DIGITS) for of, after in _pushed(folder, config, step, tier).items()} for tier in TIERS}


def reach_table(records: Sequence[Record]) -> str:
    """Rise of the entropy of a response, nats: a row a place, a run being the mean of its checkpoints. A run that diverged has none."""
    records = [record for record in records if "reach" in record]
    pairs = [(on, of) for on in TIERS for of in TIERS]
    heads = [f"bonus on {on}: entropy of {of}" for on, of in pairs] + [f"bonus on {on}: other / own tier" for on in TIERS]
    lines = [f"| setting | runs | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for label, runs in [*by_place(records).items(), *([("all", records)] if records else [])]:
        cells = [mean(runs, partial(rise, on=on, of=of)) for on, of in pairs] + [reaching(runs, on) for on in TIERS]
        lines.append(f"| {label} | {len(runs)} | {' | '.join(map(shown, cells))} |")
    return "\n".join(lines) + "\n"


def reaching(runs: Sequence[Record], on: str) -> Estimate:
    """Return what a bonus on a tier gives to the other one, as a share of what it gives to its own."""
    other = next(tier for tier in TIERS if tier != on)
    return mean(runs, lambda run: rise(run, on, other) / rise(run, on, on))


def rise(record: Record, on: str, of: str) -> float:
    """Return the rise of a tier's entropy by a bonus on a tier, mean over the checkpoints of a run."""
    return fmean(found[on][of] for found in record["reach"].values())


def _pushed(folder: Path, config: TrainConfig, step: int, tier: str) -> Entropies:
    policy = policy_at(folder, config)
    optimizer = torch.optim.AdamW(policy.model.parameters(), betas=config.optim.betas, weight_decay=config.optim.weight_decay)
    checkpoint.restore(folder, policy, optimizer, method_of(config))
    for state in optimizer.state.values():
        state["exp_avg"].zero_()  # where rewards were leading
    prompts = [p for p in builtin_prompts(config.data.train, "train", None, config.run.seed) if p.tier == tier]
    rollout, count = HFRollout(policy, config.rollout), config.optim.prompts_per_step
    for index in range(STEPS):
        batch = _bonus_alone(rollout, prompts[index * count : (index + 1) * count], config, index)
        update_policy(policy, optimizer, batch, config, step)
    return _entropies(policy, config)


def _bonus_alone(rollout: HFRollout, prompts: list[Prompt], config: TrainConfig, index: int) -> Weighed:
    size = config.rollout.group_size
    samples = rollout.generate(prompts, size, (config.run.seed, "reach", index))
    groups = [Group(prompt, samples[p * size : (p + 1) * size], []) for p, prompt in enumerate(prompts)]
    nothing = [0.0] * len(samples)
    batch = Batch(groups, nothing, nothing, [True] * len(samples), [0.0] * len(groups))
    return weigh(batch, token_batch(batch, ("reach", index)), AER(EntropyControlConfig(kind="fixed", coef=COEF, difficulty="uniform")))


def _entropies(policy: Policy, config: TrainConfig) -> Entropies:
    prompts = builtin_prompts(config.data.train, "validation", None, 0)
    samples = HFRollout(policy, config.rollout).generate(prompts, SAMPLES, (config.run.seed, "reach"))
    return {tier: fmean(sample.surprisal for sample in samples if prompts[sample.prompt].tier == tier) for tier in TIERS}
