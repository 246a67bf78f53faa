"""What the numbers of a run call for: one line a cause, naming the option to change and its value now.

A cause must be there in ENOUGH of the last WINDOW steps, so that one noisy step says nothing; an urgent one in URGENT_ENOUGH in a row.
It is told once, and again when it returns after WINDOW steps without it. The console tells hints while the run goes on; the report finds
the same ones in the records.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from aer_train.monitor.options import Options
from aer_train.types import Row

WINDOW = 5
ENOUGH = 4

URGENT = ("out_of_reach",)
URGENT_ENOUGH = 2
"""Steps in a row after which an urgent cause is told: a policy that becomes noise is lost within a few."""

FAR_ABOVE = 1.3
"""Multiple of the initial entropy (or of a higher target) above which an adapted coefficient should have brought entropy back."""

FAR_ABOVE_SETTLED = 1.5
"""Multiple of a target that has moved below its start."""

COLLAPSED = 0.25
"""Share of the initial entropy below which it has collapsed; half the target where a coefficient is adapted to one."""

EXPLODED = 2.0
"""Multiple of the initial entropy above which it explodes; 1.5 of it (or of a higher target) where a coefficient is adapted."""

MISMATCH = 0.05
"""Nats: bfloat16 on both sides differs by 0.01 to 0.02 on average, stale or corrupt weights by 0.1 and more."""

WAITING = 0.2
"""Share of a step's time spent waiting for the verifier, which should work while others are sampled."""

SAMPLING = 0.85
"""Share of a step's time spent sampling."""


FIRST = "right at first"
"""What `Hints` adds to a row: the mean share of right responses over the first FIRST_STEPS steps."""

FIRST_STEPS = 3

SOMETHING = 0.1
"""Share of right responses at first below which a fall cannot be told from chance."""


@dataclass(frozen=True)
class Hint:
    """One line for the user."""

    step: int
    """At which the cause had been there for long enough."""
    cause: str
    text: str


class Hints:
    """Reads the rows of a run in order, and says what they call for."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._options = Options(config)
        self._seen = {cause: deque[bool](maxlen=WINDOW) for cause in CAUSES}
        self._told: set[str] = set()
        self._first: list[float] = []

    def step(self, row: Row) -> list[Hint]:
        """Return what a finished step calls for that was not told before."""
        found, right = [], _right(row)
        if right is not None and len(self._first) < FIRST_STEPS:
            self._first.append(right)
        if len(self._first) == FIRST_STEPS:
            row = {**row, FIRST: fmean(self._first)}
        for cause, find in CAUSES.items():
            text, seen = find(row, self._options), self._seen[cause]
            seen.append(text is not None)
            lasting = all([*seen][-URGENT_ENOUGH:]) and len(seen) >= URGENT_ENOUGH if cause in URGENT else sum(seen) >= ENOUGH
            if text is not None and lasting and cause not in self._told:
                self._told.add(cause)
                found.append(Hint(row["step"], cause, text))
            elif len(seen) == WINDOW and not any(seen):
                self._told.discard(cause)
        return found


def hints_of(rows: Iterable[Row], config: dict[str, Any]) -> list[Hint]:
    """Return every hint of a run."""
    hints = Hints(config)
    return [hint for row in rows for hint in hints.step(row)]


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


def _entropy(row: Row, options: Options) -> tuple[float, float, float | None] | None:
    """(smoothed, initial, target) in the unit of what is held, the target only where a coefficient is adapted to it; None: not known."""
    smoothed, initial = row.get("entropy/smoothed"), row.get("entropy/initial")
    target = row.get("entropy/target") if options.moved().adapted else None
    return (smoothed, initial, target) if smoothed is not None and initial else None


def _collapse(row: Row, options: Options) -> str | None:
    known = _entropy(row, options)
    if known is None:
        return None
    entropy, initial, target = known
    if entropy >= (COLLAPSED * initial if target is None else target / 2):
        return None
    what = f"entropy collapsed to {entropy:.3f} {options.moved().unit}, {entropy / initial:.0%} of its start"
    moved, now = options.moved(), options.now
    if moved.kind == "off":
        return f"{what}: set {now('method.kind')} to aer"
    at_bound = bool(row.get("entropy/saturated"))
    remedy = moved.bound if at_bound else moved.speed
    slower = f"lower {now('optim.lr')}" if remedy is None else f"raise {now(remedy)}, or lower {now('optim.lr')}"
    return f"{what}, with the {moved.name} at its bound: {slower}" if at_bound else f"{what}: {slower}"


def _explosion(row: Row, options: Options) -> str | None:
    known = _entropy(row, options)
    if known is None:
        return None
    entropy, initial, target = known
    if entropy <= (EXPLODED * initial if target is None else 1.5 * max(initial, target)):
        return None
    what, now = f"entropy rose to {entropy:.3f} {options.moved().unit}, {entropy / initial:.1f} times its start", options.now
    if target is not None and _at_lower_bound(row, options):
        return None  # told by out_of_reach
    if not row.get("entropy/coef"):
        return f"{what}, without an entropy bonus: lower {now('optim.lr')}, or {now('objective.clip_high')}"
    moved = options.moved()
    if row["entropy/coef"] < 0:
        faster = "" if moved.speed is None else f"raise {now(moved.speed)}, or "
        return f"{what}, with the coefficient at {row['entropy/coef']:.3f}: {faster}lower {now('optim.lr')}"
    bound = moved.speed if moved.kind == "fixed" else moved.bound
    return f"{what}, with the coefficient at {row['entropy/coef']:.3f}: lower {now(bound or 'method.kind')}, or {now('optim.lr')}"


def _out_of_reach(row: Row, options: Options) -> str | None:
    """A coefficient at its lower bound has done what it can."""
    known = _entropy(row, options)
    if known is None or not _at_lower_bound(row, options):
        return None
    smoothed, initial, target = known
    if target is None:
        return None
    now, entropy, own = options.now, row.get("entropy/controlled") or smoothed, options.moved().prefix
    settles = options.value(f"{own}.tau_end") is not None and target < initial
    if entropy <= FAR_ABOVE * max(initial, target) and not (settles and entropy > FAR_ABOVE_SETTLED * target):
        return None
    level = f"{entropy:.3f} {options.moved().unit}, {entropy / target:.1f} times its target"
    what = f"entropy is at {level}, with the coefficient at its lower bound"
    causes = [f"lower {now('optim.lr')}"]
    if (options.value(f"{own}.min_coef") or 0.0) < 0:
        causes.insert(0, f"lower {now(f'{own}.min_coef')}")
    if options.value(f"{own}.target") is None and (options.value(f"{own}.tau") or 0.0) > 1:
        causes.append(f"set {now(f'{own}.tau')} below 1")
    if options.lacks(f"{own}.surplus"):
        causes.append(f"set {now(f'{own}.surplus')} to 1, as prompts that nothing solves may be noise")
    elif options.moved().kind == "aer":
        causes.append(f"put token_targets in place of aer in {now('method.kind')}, as its coefficient may be negative")
    return f"{what}, which cannot pull it down: {', or '.join(causes)}"


def _at_lower_bound(row: Row, options: Options) -> bool:
    coef = row.get("entropy/coef")
    return coef is not None and coef <= (options.value(f"{options.moved().prefix}.min_coef") or 0.0)


def _saturated(row: Row, options: Options) -> str | None:
    """What is moved is at its bound, and entropy is not at its target: below it, or above it where a method can pull it down."""
    known = _entropy(row, options)
    if known is None or not row.get("entropy/saturated"):
        return None
    entropy, _, target = known
    moved, now = options.moved(), options.now
    if target is None or (entropy >= target and row.get("entropy/coef") is not None):
        return None
    side, other = ("below", "lower") if entropy < target else ("above", "raise")
    aim = f"{moved.prefix}.{'tau' if options.value(f'{moved.prefix}.target') is None else 'target'}"
    what = f"the {moved.name} is at its bound and entropy, {entropy:.3f} {options.moved().unit}, still {side} its target of {target:.3f}"
    return f"{what}: {other} {now(aim)}" if moved.bound is None else f"{what}: raise {now(moved.bound)}, or {other} {now(aim)}"


FAILED = "reward/failed/"
"""What metrics of reward functions that fail begin with."""


def _right(row: Row) -> float | None:
    """The share of right responses, or the mean reward where that is not known."""
    found: float | None = row.get("reward/accuracy", row.get("reward/mean"))
    return found


def _unlearned(row: Row, options: Options) -> str | None:
    first, right, now = row.get(FIRST), _right(row), options.now
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


def _zero_variance(row: Row, options: Options) -> str | None:
    reward, now = _right(row), options.now
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


def _truncated(row: Row, options: Options) -> str | None:
    share = row.get("tokens/truncated_frac") or 0.0
    if share <= 0.5:
        return None
    remedy = cut_remedy(share, row.get("tokens/cut_answered_frac"), options.now("rollout.max_new_tokens"), options.now("rollout.stop"))
    return f"{share:.0%} of the responses were cut before they ended{remedy}"


def _loss_is_zero(row: Row, options: Options) -> str | None:
    loss, norm = row.get("policy/loss"), row.get("optim/grad_norm")
    if loss is None or not norm or abs(loss) > 1e-3 or options.value("optim.updates_per_step") != 1:
        return None
    why = f"with one update on each batch, {options.now('optim.updates_per_step')}, ratios are 1 and the advantages of a group add up to 0"
    return f"the loss is about 0 by construction, no fault: {why}; their gradient does not (norm {norm:.2g}): watch reward and entropy"


def _verifier(row: Row, options: Options) -> str | None:
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


def _no_answer(row: Row, options: Options) -> str | None:
    share = row.get("outcome/no_answer") or 0.0
    if share <= 0.5:
        return None
    template = options.value("data.template")
    where = f"reward.kind {options.value('reward.kind')} finds no answer in {share:.0%} of the responses"
    return f"{where}: ask for its form in data.template (now {template!r}), and look at the samples in the report"


def _mismatch(row: Row, options: Options) -> str | None:
    mismatch = row.get("rollout/mismatch_mean") or 0.0
    if mismatch <= MISMATCH:
        return None
    what = (
        f"log-probs of the sampled tokens differ by {mismatch:.3f} nats on average between {options.now('rollout.backend')} and the trainer"
    )
    remedy = f"compare its precision with {options.now('model.dtype')}, and let {options.now('objective.mismatch')} correct for the rest"
    return f"{what}: stale weights, or another precision; {remedy}"


def _waiting(row: Row, options: Options) -> str | None:
    share = row.get("time_share/verify_wait") or 0.0
    if share <= WAITING:
        return None
    remedy = f"raise {options.now('reward.workers')} to the cores that are free, or lower {options.now('reward.timeout')}"
    return f"{share:.0%} of the step was spent waiting for the verifier: {remedy}"


def _sampling(row: Row, options: Options) -> str | None:
    share, now = row.get("time_share/rollout") or 0.0, options.now
    if share <= SAMPLING:
        return None
    remedy = f"a faster {now('rollout.backend')}, a larger {now('rollout.batch_size')} or a lower {now('rollout.max_new_tokens')}"
    return f"{share:.0%} of the step was spent sampling, so that little else matters for its speed: try {remedy}"


CAUSES: dict[str, Callable[[Row, Options], str | None]] = {
    "collapse": _collapse,
    "explosion": _explosion,
    "out_of_reach": _out_of_reach,
    "saturated": _saturated,
    "unlearned": _unlearned,
    "zero_variance": _zero_variance,
    "truncated": _truncated,
    "loss_is_zero": _loss_is_zero,
    "verifier": _verifier,
    "no_answer": _no_answer,
    "mismatch": _mismatch,
    "waiting": _waiting,
    "sampling": _sampling,
}
"""Each returns its text when a row shows the cause."""
