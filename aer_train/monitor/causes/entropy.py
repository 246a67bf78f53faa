"""Entropy that leaves the range in which it should be held."""

from __future__ import annotations

from aer_train.monitor.options import Options
from aer_train.types import Row

FAR_ABOVE = 1.3
"""Multiple of the initial entropy (or of a higher target) above which an adapted coefficient should have brought entropy back."""

FAR_ABOVE_SETTLED = 1.5
"""Multiple of a target that has moved below its start."""

COLLAPSED = 0.25
"""Share of the initial entropy below which it has collapsed; half the target where a coefficient is adapted to one."""

EXPLODED = 2.0
"""Multiple of the initial entropy above which it explodes; 1.5 of it (or of a higher target) where a coefficient is adapted."""


def collapse(row: Row, options: Options) -> str | None:
    known = _entropy(row, options)
    if known is None or _without_target(row, options):
        return None  # a policy that becomes surer by itself may
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


def explosion(row: Row, options: Options) -> str | None:
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


def out_of_reach(row: Row, options: Options) -> str | None:
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


def saturated(row: Row, options: Options) -> str | None:
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


def stands_by(row: Row, options: Options) -> str | None:
    name = f"{options.moved().prefix}.patience"
    patience = options.value(name)
    if not _without_target(row, options) or row["step"] < patience:
        return None
    return f"no entropy bonus is added, as few of the prompts unsolved at first still were by step {patience}: {options.now(name)}"


def _without_target(row: Row, options: Options) -> bool:
    """Whether the method waits, or has decided to add nothing."""
    moved = options.moved()
    return moved.kind != "off" and options.value(f"{moved.prefix}.patience") is not None and row.get("entropy/target") is None


def _entropy(row: Row, options: Options) -> tuple[float, float, float | None] | None:
    """(smoothed, initial, target) in the unit of what is held, the target only where a coefficient is adapted to it; None: not known."""
    smoothed, initial = row.get("entropy/smoothed"), row.get("entropy/initial")
    target = row.get("entropy/target") if options.moved().adapted else None
    return (smoothed, initial, target) if smoothed is not None and initial else None


def _at_lower_bound(row: Row, options: Options) -> bool:
    coef = row.get("entropy/coef")
    return coef is not None and coef <= (options.value(f"{options.moved().prefix}.min_coef") or 0.0)
