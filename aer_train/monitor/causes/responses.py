"""Responses that are cut, hold no answer or get no verdict."""

from __future__ import annotations

from aer_train.monitor.options import Options
from aer_train.types import Row

FAILED = "reward/failed/"
"""What metrics of reward functions that fail begin with."""


def truncated(row: Row, options: Options) -> str | None:
    share = row.get("tokens/truncated_frac") or 0.0
    if share <= 0.5:
        return None
    remedy = cut_remedy(share, row.get("tokens/cut_answered_frac"), options.now("rollout.max_new_tokens"), options.now("rollout.stop"))
    return f"{share:.0%} of the responses were cut before they ended{remedy}"


def cut_remedy(share: float, answered: float | None, limit: str, stop: str) -> str:
    """Return the end of a sentence that says why responses are cut, and what to do.

    Args:
        share: of responses that are cut.
        answered: share of these that hold an answer; None where it is not known.
        limit, stop: the options rollout.max_new_tokens and rollout.stop, as they are called.
    """
    if answered is not None and answered > 0.5:
        return f", {answered:.0%} of those after an answer, behind which they went on: name what follows an answer in {stop}"
    if share == 1:
        return f", as none ended by itself: raise {limit}, or if the responses go on behind an answer, name what follows it in {stop}"
    return f": raise {limit}"


def no_answer(row: Row, options: Options) -> str | None:
    share = row.get("outcome/no_answer") or 0.0
    if share <= 0.5:
        return None
    template = options.value("data.template")
    where = f"reward.kind {options.value('reward.kind')} finds no answer in {share:.0%} of the responses"
    return f"{where}: ask for its form in data.template (now {template!r}), and look at the samples in the report"


def verifier(row: Row, options: Options) -> str | None:
    failed = {name: row.get(f"outcome/{name}") or 0.0 for name in ("timeout", "crash")}
    remedy = f"raise {options.now('reward.timeout')}, or set {options.now('reward.workers')} to the cores that are free"
    if sum(failed.values()) > 0.05:
        shares = " and ".join(f"{share:.0%} in {name}" for name, share in failed.items() if share)
        return f"verification ended without a verdict ({shares}), {_consequence(options)}: {remedy}"
    functions = {name.removeprefix(FAILED): row[name] for name in row if name.startswith(FAILED) and (row[name] or 0.0) > 0.05}
    shares = " and ".join(f"{share:.0%} of the calls of {name}" for name, share in functions.items())
    if not functions:
        return None
    why = "the column detail of the samples says why"
    return f"reward functions failed ({shares}), {_consequence(options)}: {why}; {remedy}, or {options.now('reward.request_timeout')}"


def _consequence(options: Options) -> str:
    if options.value("reward.on_failure") == "mask":
        return "and such responses are not trained"
    return "and such responses get nothing for it"
