"""Rollouts that differ from the trainer's policy, or take most of a step."""

from __future__ import annotations

from aer_train.monitor.options import Options
from aer_train.types import Row

MISMATCH = 0.05
"""Nats: bfloat16 on both sides differs by 0.01 to 0.02 on average, stale or corrupt weights by 0.1 and more."""

WAITING = 0.2
"""Share of a step's time spent waiting for the verifier, which should work while others are sampled."""

SAMPLING = 0.85
"""Share of a step's time spent sampling."""


def mismatch(row: Row, options: Options) -> str | None:
    mismatch = row.get("rollout/mismatch_mean") or 0.0
    if mismatch <= MISMATCH:
        return None
    what = (
        f"log-probs of the sampled tokens differ by {mismatch:.3f} nats on average between {options.now('rollout.backend')} and the trainer"
    )
    remedy = f"compare its precision with {options.now('model.dtype')}, and let {options.now('objective.mismatch')} correct for the rest"
    return f"{what}: stale weights, or another precision; {remedy}"


def waiting(row: Row, options: Options) -> str | None:
    share = row.get("time_share/verify_wait") or 0.0
    if share <= WAITING:
        return None
    remedy = f"raise {options.now('reward.workers')} to the cores that are free, or lower {options.now('reward.timeout')}"
    return f"{share:.0%} of the step was spent waiting for the verifier: {remedy}"


def sampling(row: Row, options: Options) -> str | None:
    share, now = row.get("time_share/rollout") or 0.0, options.now
    if share <= SAMPLING:
        return None
    remedy = f"a faster {now('rollout.backend')}, a larger {now('rollout.batch_size')} or a lower {now('rollout.max_new_tokens')}"
    return f"{share:.0%} of the step was spent sampling, so that little else matters for its speed: try {remedy}"
