"""Rewards that teach nothing, and what was learned and is lost."""

from __future__ import annotations

from aer_train.monitor.options import Options
from aer_train.types import Row

FIRST = "right at first"
"""What `Hints` adds to a row: the mean share of right responses over the first FIRST_STEPS steps."""

SOMETHING = 0.1
"""Share of right responses at first below which a fall cannot be told from chance."""


def unlearned(row: Row, options: Options) -> str | None:
    first, right, now = row.get(FIRST), share_right(row), options.now
    if first is None or right is None or first < SOMETHING or right >= first / 2:
        return None
    if any(options.value(f"difficulty.{name}") is not None for name in ("drop_solved", "target")):
        return None  # harder prompts are drawn as the policy learns
    what = f"the share of right responses fell to {right:.2f}, from {first:.2f} at first"
    if options.value("method.kind") == "off":
        return f"{what}: lower {now('optim.lr')}"
    return (
        f"{what}: lower {now('optim.lr')}, and see whether it falls with {now('method.kind')} set to off, too; if not, the method does harm"
    )


def zero_variance(row: Row, options: Options) -> str | None:
    reward, now = share_right(row), options.now
    if reward is None or (row.get("reward/zero_variance_frac") or 0.0) < 0.95:
        return None
    what = f"the responses to each prompt got equal rewards (mean {reward:.2f}), so that rewards teach nothing"
    if reward > 0.95:
        return f"{what}: use harder prompts than {now('data.train')}"
    if reward > 0.05:
        other = f"set {now('rollout.refill')} to zero_variance and raise {now('rollout.refill_rounds')} to draw other prompts instead"
        return f"{what}: raise {now('rollout.group_size')}, or {other}"
    size = now("rollout.group_size")
    return (
        f"{what}: use easier prompts than {now('data.train')}, raise {size}, and check {now('reward.kind')} with the samples in the report"
    )


def loss_is_zero(row: Row, options: Options) -> str | None:
    loss, norm = row.get("policy/loss"), row.get("optim/grad_norm")
    if loss is None or not norm or abs(loss) > 1e-3 or options.value("optim.updates_per_step") != 1:
        return None
    why = f"with one update on each batch, {options.now('optim.updates_per_step')}, ratios are 1 and the advantages of a group add up to 0"
    return f"the loss is about 0 by construction, no fault: {why}; their gradient does not (norm {norm:.2g}): watch reward and entropy"


def share_right(row: Row) -> float | None:
    """The share of right responses, or the mean reward where that is not known."""
    found: float | None = row.get("reward/accuracy", row.get("reward/mean"))
    return found
