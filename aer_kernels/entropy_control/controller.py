"""The controller: plain Python on floats. It reads a few numbers a step and never touches a device by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aer_kernels.entropy_control.config import EntropyControlConfig
from aer_kernels.entropy_control.rules import SMALLEST_BALANCE, Balance, Seen, make_rule
from aer_kernels.entropy_control.target import Target
from aer_kernels.entropy_control.weights import difficulty_weights, held_weights


class AdaptiveEntropyController:
    """Chooses the entropy coefficient of each prompt and adapts it once per optimizer step.

        ctl = AdaptiveEntropyController(EntropyControlConfig())
        coef = ctl.coefficients(group_accuracy)          # (P,) alpha * w(q): give each prompt's value to its tokens
        ...forward, backward, optimizer step...
        ctl.update(entropy_sum, token_count)             # both summed over micro-batches and ranks

    alpha is fixed between two updates. The entropy given to `update` must be that of the tempered distribution and of the loss tokens
    that were trained. Kind balance also needs the slopes of `entropy_slopes` on the same tokens, with `weights` as weights,
    settle_unsolved the share of prompts that no sample solved, and surplus the entropy of each prompt. Evaluation must not call `update`.

    Raises:
        ValueError - tau_end is set and `updates`, over which the target moves, is not.
    """

    def __init__(self, config: EntropyControlConfig | None = None) -> None:
        self.config = EntropyControlConfig() if config is None else config
        if self.config.tau_end is not None and self.config.updates is None:
            raise ValueError("updates must be given with tau_end, got None")
        self._rule, self._aim = make_rule(self.config), Target(self.config)
        starts_at = {"fixed": self.config.coef, "bang_bang": self._clip(self.config.coef), "integral": self._clip(self.config.coef)}
        self._coef = starts_at.get(self.config.kind, 0.0)
        self._initial: float | None = None
        self._smoothed: float | None = None
        self._last: float | None = None
        self._updates = 0

    @property
    def enabled(self) -> bool:
        """Whether there is an entropy term (see `EntropyControlConfig.enabled`)."""
        return self.config.enabled

    @property
    def alpha(self) -> float:
        """The global coefficient that is applied now. bang_bang withdraws it while the last entropy is above the target."""
        above = self.config.kind == "bang_bang" and self._last is not None and self._last > self._target()
        return 0.0 if above else self._coef

    @property
    def target(self) -> float | None:
        """Target entropy H* in nats; None until the initial entropy is known."""
        return None if self.config.target is None and self._initial is None else self._target()

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
    def balance(self) -> float:
        """B of (C10): the coefficient at which policy gradient and bonus would leave the entropy as it is; measured by kind balance."""
        return self._rule.unit if isinstance(self._rule, Balance) else SMALLEST_BALANCE

    @property
    def saturated(self) -> bool:
        """Whether the coefficient is at its upper bound."""
        return self.config.kind not in ("off", "fixed") and self._coef >= self.config.max_coef

    def coefficients(self, group_accuracy: Tensor | Sequence[float], group_entropy: Tensor | Sequence[float] | None = None) -> Tensor:
        """The coefficient of each prompt: alpha times `weights` (C1, C7).

        Args:
            group_accuracy: (P,) mean verified reward of each prompt's samples, in [0, 1].
            group_entropy: (P,) entropy of each prompt's samples, nats per token or response as `quantity` says; needed with surplus. The
                mean of -logprob over the samples is an unbiased estimate.
        Returns:
            (P,) fp32 on the device of group_accuracy, >= 0. All zero when disabled.
        Raises:
            ValueError - a shape is wrong, or surplus gets no group_entropy.
        """
        return self.alpha * self.weights(group_accuracy, group_entropy)

    def weights(self, group_accuracy: Tensor | Sequence[float], group_entropy: Tensor | Sequence[float] | None = None) -> Tensor:
        """w(q) (C1), divided by its mean over the prompts when `normalize_weights` is set (C7). Until the target is known H(q) is not
        looked at. Arguments and errors as in `coefficients`."""
        accuracy = _accuracy(group_accuracy)
        return difficulty_weights(accuracy, self.config, self._relative(group_entropy, accuracy))

    def held(self, group_accuracy: Tensor | Sequence[float]) -> Tensor:
        """v(q) (C13): what the entropies and the tokens (or responses) of each prompt are multiplied by in the sums that `update` gets; 1
        for every prompt unless `held` is "difficult". Argument and errors as in `coefficients`."""
        return held_weights(_accuracy(group_accuracy), self.config)

    def _relative(self, group_entropy: Tensor | Sequence[float] | None, accuracy: Tensor) -> Tensor | None:
        """H(q) / H*, where it is needed and known."""
        if self.config.surplus is None:
            return None
        if group_entropy is None:
            raise ValueError("group_entropy must be given with surplus, got None")
        entropy = torch.as_tensor(group_entropy, dtype=torch.float32, device=accuracy.device)
        if entropy.shape != accuracy.shape:
            raise ValueError(f"group_entropy must have shape {tuple(accuracy.shape)}, got {tuple(entropy.shape)}")
        return entropy / self.target if self.target else None

    def update(
        self,
        entropy_sum: float | Tensor,
        token_count: float | Tensor,
        slopes: Sequence[float | Tensor] | None = None,
        unsolved: float | None = None,
    ) -> float:
        """Move the coefficient by the measured entropy; returns the new alpha. Reads a few numbers: a device sync when they are on a GPU.

        Args:
            entropy_sum: sum of the token entropies of the step, nats, over all micro-batches and ranks; times `held` where it is not 1.
            token_count: number of those tokens, or of the responses that they make up where `quantity` is "response", likewise. 0 changes
                nothing.
            slopes: policy and bonus slope over those tokens (the first two of `EntropySlopes`); needed by kind balance.
            unsolved: share of the step's prompts, in [0, 1], that no sample solved; needed with settle_unsolved.
        Raises:
            ValueError - the entropy or a slope is not finite, kind balance gets no slopes, or settle_unsolved no unsolved.
        """
        total, number = float(entropy_sum), float(token_count)
        if number <= 0:
            return self.alpha
        entropy = total / number
        if not math.isfinite(entropy):
            raise ValueError(f"entropy_sum must be finite, got {total} over {number:g} {self.config.quantity}s")
        measured = self._each(slopes, number) if self.config.kind == "balance" else None
        share = self._share(unsolved) if self.config.settle_unsolved is not None else None
        if self._initial is None:
            self._initial = self._smoothed = entropy
        assert self._smoothed is not None, "set together with the initial entropy"
        self._smoothed = self.config.ema * self._smoothed + (1.0 - self.config.ema) * entropy
        self._last = entropy
        self._updates += 1
        if share is not None:
            self._aim.see(share, self._updates)
        seen = Seen(entropy, self._smoothed, self._target(), measured, self._updates)
        coef = self._rule.next(seen, self._coef)
        self._coef = coef if self.config.kind in ("off", "fixed") else self._clip(coef)
        return self.alpha

    def _each(self, slopes: Sequence[float | Tensor] | None, number: float) -> tuple[float, float]:
        if slopes is None:
            raise ValueError("slopes must be given for kind='balance' (see entropy_slopes), got None")
        policy, bonus = float(slopes[0]), float(slopes[1])
        if not (math.isfinite(policy) and math.isfinite(bonus)):
            raise ValueError(f"slopes must be finite, got {policy} and {bonus}")
        return policy / number, bonus / number

    @staticmethod
    def _share(unsolved: float | None) -> float:
        if unsolved is None or not 0.0 <= unsolved <= 1.0:
            raise ValueError(f"unsolved must be given in [0, 1] with settle_unsolved, got {unsolved}")
        return float(unsolved)

    def _target(self) -> float:
        assert self._initial is not None or self.config.target is not None, "the target is known after the first update"
        return self._aim.entropy(self._initial or 0.0, self._updates)

    def _clip(self, coef: float) -> float:
        return min(max(coef, self.config.min_coef), self.config.max_coef)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on as if nothing had happened; plain numbers, safe in JSON."""
        return {
            "kind": self.config.kind,
            "coef": self._coef,
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
            ValueError - it is not whole, as one of another version, or of another rule, where the coefficient would mean something else.
        """
        missing = [name for name in self.state_dict() if name not in state]
        if missing:
            raise ValueError(f"state must hold {', '.join(self.state_dict())}, got none of {', '.join(missing)}")
        if state["kind"] != self.config.kind:
            raise ValueError(f"state must come from a controller of kind {self.config.kind!r}, got {state['kind']!r}")
        self._coef, self._rule.state = state["coef"], dict(state["rule"])
        self._aim.state = dict(state["target"])
        self._initial, self._smoothed, self._last = state["initial_entropy"], state["smoothed_entropy"], state["last_entropy"]
        self._updates = state["updates"]


def _accuracy(group_accuracy: Tensor | Sequence[float]) -> Tensor:
    accuracy = torch.as_tensor(group_accuracy, dtype=torch.float32)
    if accuracy.ndim != 1:
        raise ValueError(f"group_accuracy must have shape (P,), got {tuple(accuracy.shape)}")
    return accuracy
