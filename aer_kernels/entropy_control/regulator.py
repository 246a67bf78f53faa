"""A regulator: one number, moved once an update by a rule so that entropy stays at its target. What the number does is its user's matter:
a coefficient, a bound of the ratio, a weight, a gate. Plain Python on floats."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from aer_kernels.entropy_control.aim import AimConfig
from aer_kernels.entropy_control.patience import Patience
from aer_kernels.entropy_control.rules import Rule, Seen
from aer_kernels.entropy_control.target import Target


class Regulator:
    """Smoothing, target, schedule, bounds and state of one number that a rule moves.

    Args:
        config: the target, and how entropy is smoothed.
        rule: moves the number.
        start: the number before the first update, within the bounds.
        bounds: the number is clipped to them at every update.
        raises: 1 where a larger number raises entropy, -1 where it lowers it.
        neutral: the number that leaves plain GRPO. None: there is none.
        slack: nats from the target within which the rule does not move the number.
        patience: the rule moves the number only where this says that it acts.
    Raises:
        ValueError: tau_end is set, and `updates`, over which the target moves, is not.
    """

    def __init__(
        self,
        config: AimConfig,
        rule: Rule,
        start: float,
        bounds: tuple[float, float] = (-math.inf, math.inf),
        raises: int = 1,
        neutral: float | None = None,
        slack: float = 0.0,
        patience: Patience | None = None,
    ) -> None:
        if config.tau_end is not None and config.updates is None:
            raise ValueError("updates must be given with tau_end, got None")
        self._aim_config, self._rule, self._aim = config, rule, Target(config)
        self._bounds, self._raises, self._neutral, self._slack = bounds, raises, neutral, slack
        self._patience = Patience(None) if patience is None else patience
        self._value = start
        self._initial: float | None = None
        self._smoothed: float | None = None
        self._last: float | None = None
        self._updates = 0

    @property
    def value(self) -> float:
        """The number that is applied now."""
        return self._value

    @property
    def target(self) -> float | None:
        """Target entropy H* in nats; None until the initial entropy is known."""
        return None if self._aim_config.target is None and self._initial is None else self._target()

    @property
    def initial_entropy(self) -> float | None:
        """H_0: mean entropy of the first update, nats."""
        return self._initial

    @property
    def last_entropy(self) -> float | None:
        """H of the last update, nats."""
        return self._last

    @property
    def smoothed_entropy(self) -> float | None:
        """Hbar of (C3), nats."""
        return self._smoothed

    @property
    def updates(self) -> int:
        """How many updates it has seen."""
        return self._updates

    @property
    def below(self) -> bool | None:
        """Whether the smoothed entropy is below the target; None before the first update."""
        return None if self._smoothed is None else self._smoothed < self._target()

    @property
    def saturated(self) -> bool:
        """Whether the number is at a bound, other than the neutral one, beyond which the error would take it."""
        if self._smoothed is None or abs(self._smoothed - self._target()) <= self._slack:
            return False
        low, high = self._bounds
        bound = high if (self._raises > 0) == self.below else low
        return self._value == bound != self._neutral

    def after(self, entropy: float) -> Regulator:
        """Return a copy that has seen one more entropy, nats. This one stays as it is."""
        seen = copy.deepcopy(self)
        seen.update(entropy, 1.0, unsolved=self._aim.state["unsolved"])
        return seen

    def update(
        self,
        entropy_sum: float | Tensor,
        token_count: float | Tensor,
        slopes: Sequence[float | Tensor] | None = None,
        unsolved: float | None = None,
    ) -> float:
        """Move the number by the measured entropy, and return it. Reads a few numbers: a device sync when they are on a GPU.

        Args:
            entropy_sum: sum of the token entropies of the step, nats, over all micro-batches and ranks.
            token_count: what their mean is over: tokens or responses, likewise. 0 changes nothing.
            slopes: policy and bonus slope over those tokens (the first two of `EntropySlopes`), for rules that need them.
            unsolved: share of the step's prompts, in [0, 1], that no sample solved; needed with settle_unsolved and patience.
        Raises:
            ValueError: the entropy or a slope is not finite, or what the rule, settle_unsolved or patience needs is missing.
        """
        total, number = float(entropy_sum), float(token_count)
        if number <= 0:
            return self.value
        entropy = total / number
        if not math.isfinite(entropy):
            raise ValueError(f"entropy_sum must be finite, got {total} over {number:g} {self._counted}")
        measured = self._each(slopes, number) if self._rule.needs_slopes else None
        undecided, settles = self._patience.acts is None, self._aim_config.settle_unsolved is not None
        share = self._share(unsolved) if undecided or settles else 0.0
        if self._initial is None:
            self._initial = self._smoothed = entropy
        assert self._smoothed is not None, "set together with the initial entropy"
        self._smoothed = self._aim_config.ema * self._smoothed + (1.0 - self._aim_config.ema) * entropy
        self._last = entropy
        self._updates += 1
        if settles:
            self._aim.see(share, self._updates)
        if undecided:
            self._patience.see(share)
        if not self._patience.acts:
            return self.value
        seen = Seen(entropy, self._smoothed, self._target(), measured, self._updates)
        self._value = self._clip(self._rule.next(seen, self._value))
        return self.value

    @property
    def _counted(self) -> str:
        """What the entropies are a mean over, for messages."""
        return "tokens"

    def _each(self, slopes: Sequence[float | Tensor] | None, number: float) -> tuple[float, float]:
        if slopes is None:
            raise ValueError(f"slopes must be given for kind={self._aim_config.kind!r} (see entropy_slopes), got None")
        policy, bonus = float(slopes[0]), float(slopes[1])
        if not (math.isfinite(policy) and math.isfinite(bonus)):
            raise ValueError(f"slopes must be finite, got {policy} and {bonus}")
        return policy / number, bonus / number

    @staticmethod
    def _share(unsolved: float | None) -> float:
        if unsolved is None or not 0.0 <= unsolved <= 1.0:
            raise ValueError(f"unsolved must be given in [0, 1] with settle_unsolved or patience, got {unsolved}")
        return float(unsolved)

    def _target(self) -> float:
        assert self._initial is not None or self._aim_config.target is not None, "the target is known after the first update"
        return self._aim.entropy(self._initial or 0.0, self._updates)

    def _clip(self, value: float) -> float:
        return min(max(value, self._bounds[0]), self._bounds[1])

    def status(self) -> dict[str, float | None]:
        """Return what it holds, and how well, under the names of `Method.status`."""
        return {
            "saturated": int(self.saturated),
            "controlled": self.last_entropy,
            "smoothed": self.smoothed_entropy,
            "target": self.target,
            "initial": self.initial_entropy,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all that `load_state_dict` needs to go on as if nothing had happened, in plain numbers that JSON can hold. `coef` is the
        number, whatever it does."""
        waits = {"unsolved": [*self._patience.shares]} if self._patience.shares else {}
        return waits | {
            "kind": self._aim_config.kind,
            "coef": self._value,
            "rule": dict(self._rule.state),
            "target": dict(self._aim.state),
            "initial_entropy": self._initial,
            "smoothed_entropy": self._smoothed,
            "last_entropy": self._last,
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state.

        Raises:
            ValueError: it is not whole, as one of another version, or of another kind, where the number would mean something else.
        """
        names = [name for name in self.state_dict() if name != "unsolved"]
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(f"state must hold {', '.join(names)}, got none of {', '.join(missing)}")
        if state["kind"] != self._aim_config.kind:
            raise ValueError(f"state must come from a controller of kind {self._aim_config.kind!r}, got {state['kind']!r}")
        self._value, self._rule.state = state["coef"], dict(state["rule"])
        self._aim.state, self._patience.shares = dict(state["target"]), [*state.get("unsolved", ())]
        self._initial, self._smoothed, self._last = state["initial_entropy"], state["smoothed_entropy"], state["last_entropy"]
        self._updates = state["updates"]
