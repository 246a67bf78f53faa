"""What the numbers of a run call for: one line a cause, naming the option to change and its value now.

A cause must hold in HOLDS of the last WINDOW steps, so that one noisy step says nothing. It is told once, and again when it returns after
WINDOW steps without it. The console tells hints while the run goes on; the report finds the same ones in the records.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

WINDOW = 5
HOLDS = 4

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


@dataclass(frozen=True)
class Hint:
    """One line for the user."""

    step: int
    """At which the cause had held for long enough."""
    cause: str
    text: str


class Options:
    """The configuration of a run as nested dictionaries; one of another version may lack an option."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def value(self, name: str) -> Any:
        """Return the value of an option, None when it is not there."""
        section, key = name.split(".")
        return self._config.get(section, {}).get(key)

    def now(self, name: str) -> str:
        """Return the option and its value, for a text."""
        value = self.value(name)
        return f"{name} (now {'its default' if value is None else value})"


class Hints:
    """Reads the rows of a run in order, and says what they call for."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._options = Options(config)
        self._held = {cause: deque[bool](maxlen=WINDOW) for cause in CAUSES}
        self._told: set[str] = set()

    def step(self, row: Row) -> list[Hint]:
        """Return what a finished step calls for that was not told before."""
        found = []
        for cause, find in CAUSES.items():
            text, held = find(row, self._options), self._held[cause]
            held.append(text is not None)
            if text is not None and sum(held) >= HOLDS and cause not in self._told:
                self._told.add(cause)
                found.append(Hint(row["step"], cause, text))
            elif len(held) == WINDOW and not any(held):
                self._told.discard(cause)
        return found


def hints_of(rows: Iterable[Row], config: dict[str, Any]) -> list[Hint]:
    """Return every hint of a run."""
    hints = Hints(config)
    return [hint for row in rows for hint in hints.step(row)]


def _entropy(row: Row, options: Options) -> tuple[float, float, float | None] | None:
    """(smoothed, initial, target) entropy in nats, the target only where the coefficient is adapted to it; None when they are not known."""
    smoothed, initial = row.get("entropy/smoothed"), row.get("entropy/initial")
    adapted = options.value("entropy.kind") not in ("off", "fixed")
    return (smoothed, initial, row.get("entropy/target") if adapted else None) if smoothed is not None and initial else None


def _collapse(row: Row, options: Options) -> str | None:
    known = _entropy(row, options)
    if known is None:
        return None
    entropy, initial, target = known
    if entropy >= (COLLAPSED * initial if target is None else target / 2):
        return None
    what = f"entropy collapsed to {entropy:.3f} nats, {entropy / initial:.0%} of its start"
    kind, now = options.value("entropy.kind"), options.now
    if kind == "off":
        return f"{what}: set {now('entropy.kind')} to aer"
    if row.get("entropy/saturated"):
        return f"{what}, with the coefficient at its bound: raise {now('entropy.max_coef')}"
    gain = {"fixed": "entropy.coef", "bang_bang": "entropy.step", "integral": "entropy.ki"}.get(kind, "entropy.kp")
    return f"{what}: raise {now(gain)}, or lower {now('optim.lr')}"


def _explosion(row: Row, options: Options) -> str | None:
    known = _entropy(row, options)
    if known is None:
        return None
    entropy, initial, target = known
    if entropy <= (EXPLODED * initial if target is None else 1.5 * max(initial, target)):
        return None
    what, now = f"entropy rose to {entropy:.3f} nats, {entropy / initial:.1f} times its start", options.now
    if not row.get("entropy/coef"):  # without a bonus something else lifts it, or what an early one made of unsolved prompts stays
        if target is not None and options.value("entropy.surplus") is None:
            return f"{what}, and prompts that nothing solves may be noise: set {now('entropy.surplus')} to 1, or lower {now('optim.lr')}"
        return f"{what}, without an entropy bonus: lower {now('optim.lr')}, or {now('objective.clip_high')}"
    bound = "entropy.coef" if options.value("entropy.kind") == "fixed" else "entropy.max_coef"
    return f"{what}, with the coefficient at {row['entropy/coef']:.3f}: lower {now(bound)}, or {now('optim.lr')}"


def _saturated(row: Row, options: Options) -> str | None:
    known = _entropy(row, options)
    if known is None or not row.get("entropy/saturated"):
        return None
    entropy, _, target = known
    if target is None or entropy >= target:
        return None
    aim = "entropy.tau" if options.value("entropy.target") is None else "entropy.target"
    what = f"the entropy coefficient is at its bound and entropy, {entropy:.3f} nats, still below its target of {target:.3f}"
    return f"{what}: raise {options.now('entropy.max_coef')}, or lower {options.now(aim)}"


def _zero_variance(row: Row, options: Options) -> str | None:
    if (row.get("reward/zero_variance_frac") or 0.0) < 0.95:
        return None
    reward, now = row["reward/mean"], options.now
    what = f"the responses to each prompt got equal rewards (mean {reward:.2f}), so that rewards teach nothing"
    if reward > 0.95:
        return f"{what}: use harder prompts than {now('data.train')}"
    if reward > 0.05:
        return f"{what}: raise {now('rollout.group_size')}, or {now('rollout.refill_rounds')} to draw other prompts instead"
    size = now("rollout.group_size")
    return (
        f"{what}: use easier prompts than {now('data.train')}, raise {size}, and check {now('reward.kind')} with the samples in the report"
    )


def _truncated(row: Row, options: Options) -> str | None:
    share = row.get("tokens/truncated_frac") or 0.0
    if share <= 0.5:
        return None
    return f"{share:.0%} of the responses were cut before they ended: raise {options.now('rollout.max_new_tokens')}"


def _loss_is_zero(row: Row, options: Options) -> str | None:
    loss, norm = row.get("policy/loss"), row.get("optim/grad_norm")
    if loss is None or not norm or abs(loss) > 1e-3 or options.value("optim.updates_per_step") != 1:
        return None
    why = f"with one update on each batch, {options.now('optim.updates_per_step')}, ratios are 1 and the advantages of a group add up to 0"
    return f"the loss is about 0 by construction, no fault: {why}; their gradient does not (norm {norm:.2g}): watch reward and entropy"


def _verifier(row: Row, options: Options) -> str | None:
    failed = {name: row.get(f"outcome/{name}") or 0.0 for name in ("timeout", "crash")}
    if sum(failed.values()) <= 0.05:
        return None
    shares = " and ".join(f"{share:.0%} in {name}" for name, share in failed.items() if share)
    remedy = f"raise {options.now('reward.timeout')}, or set {options.now('reward.workers')} to the cores that are free"
    return f"verification ended without a verdict ({shares}), and such responses count as wrong: {remedy}"


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
    "saturated": _saturated,
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
