"""The controller: plain Python on floats. It reads a few numbers a step and never touches a device by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aer_kernels.entropy_control.config import EntropyControlConfig
from aer_kernels.entropy_control.patience import Patience
from aer_kernels.entropy_control.regulator import Regulator
from aer_kernels.entropy_control.rules import SMALLEST_BALANCE, Balance, make_rule
from aer_kernels.entropy_control.weights import difficulty_weights, held_weights


class AdaptiveEntropyController(Regulator):
    """Chooses the entropy coefficient of each prompt, and adapts it once per update.

        ctl = AdaptiveEntropyController(EntropyControlConfig())
        coef = ctl.coefficients(group_accuracy)          # (P,) alpha * w(q): give each prompt's value to its tokens
        ...forward, backward, optimizer step...
        ctl.update(entropy_sum, token_count)             # both summed over micro-batches and ranks

    alpha is fixed between two updates. Give `update` the entropy of the tempered distribution, over the loss tokens that were trained; each
    is times `held` where that is not 1. `token_count` is the number of those tokens, or of their responses where `quantity` is "response",
    counted in the same way. Some options need more. Kind balance needs the slopes of `entropy_slopes` on the same tokens, with `weights` as
    weights. settle_unsolved and patience need the share of prompts that no sample solved, surplus the entropy of each prompt. Evaluation
    must not call `update`.

    Raises:
        ValueError: tau_end is set, and `updates`, over which the target moves, is not.
    """

    def __init__(self, config: EntropyControlConfig | None = None) -> None:
        self.config = EntropyControlConfig() if config is None else config
        moves = self.config.kind not in ("off", "fixed")
        low, high = (self.config.min_coef, self.config.max_coef) if moves else (-math.inf, math.inf)
        start = min(max(self.config.coef, low), high) if self.config.kind in ("fixed", "bang_bang", "integral") else 0.0
        patience = Patience(self.config.patience if self.config.enabled else None)
        super().__init__(self.config, make_rule(self.config), start, (low, high), patience=patience)

    @property
    def enabled(self) -> bool:
        """Whether there is an entropy term (see `EntropyControlConfig.enabled`)."""
        return self.config.enabled

    @property
    def acts(self) -> bool:
        """Whether it moves the coefficient now. With patience it does not before that is decided, and then perhaps never (C14)."""
        return bool(self._patience.acts)

    @property
    def alpha(self) -> float:
        """The global coefficient that is applied now. bang_bang withdraws it while the last entropy is above the target."""
        above = self.config.kind == "bang_bang" and self._last is not None and self._last > self._target()
        return self._value if self.acts and not above else 0.0

    @property
    def value(self) -> float:
        """alpha, which `update` returns."""
        return self.alpha

    @property
    def balance(self) -> float:
        """B of (C10): the coefficient at which policy gradient and bonus would leave the entropy as it is; measured by kind balance."""
        return self._rule.unit if isinstance(self._rule, Balance) else SMALLEST_BALANCE

    @property
    def saturated(self) -> bool:
        """Whether the coefficient is at its upper bound."""
        return self.acts and self.config.kind not in ("off", "fixed") and self._value >= self.config.max_coef

    def coefficients(self, group_accuracy: Tensor | Sequence[float], group_entropy: Tensor | Sequence[float] | None = None) -> Tensor:
        """Return the coefficient of each prompt: alpha times `weights` (C1, C7).

        Args:
            group_accuracy: (P,) mean verified reward of each prompt's samples, in [0, 1].
            group_entropy: (P,) entropy of each prompt's samples, in nats per token or per response as `quantity` says. Only surplus needs
                it. The mean of -logprob over the samples is an unbiased estimate.
        Returns:
            (P,) fp32 on the device of group_accuracy, >= 0. All zero when disabled.
        Raises:
            ValueError: a shape is wrong, surplus gets no group_entropy, or on a CPU an accuracy lies outside [0, 1], as rewards of -1 do.
        """
        return self.alpha * self.weights(group_accuracy, group_entropy)

    def weights(self, group_accuracy: Tensor | Sequence[float], group_entropy: Tensor | Sequence[float] | None = None) -> Tensor:
        """Return w(q) (C1), divided by its mean over the prompts (C7). H(q) counts only once the target is known. Arguments and errors are
        those of `coefficients`."""
        accuracy = _accuracy(group_accuracy)
        return difficulty_weights(accuracy, self.config, self._relative(group_entropy, accuracy))

    def held(self, group_accuracy: Tensor | Sequence[float]) -> Tensor:
        """Return v(q) (C13), the factor of each prompt's entropies and tokens (or responses) in the sums that `update` gets. It is 1 for
        every prompt unless `held` is "difficult". Argument and errors are those of `coefficients`."""
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

    @property
    def _counted(self) -> str:
        return f"{self.config.quantity}s"


def _accuracy(group_accuracy: Tensor | Sequence[float]) -> Tensor:
    accuracy = torch.as_tensor(group_accuracy, dtype=torch.float32)
    if accuracy.ndim != 1:
        raise ValueError(f"group_accuracy must have shape (P,), got {tuple(accuracy.shape)}")
    if accuracy.device.type == "cpu" and bool(((accuracy < 0) | (accuracy > 1)).any()):  # no device sync elsewhere
        raise ValueError(f"group_accuracy must be in [0, 1], got {accuracy.min():g} to {accuracy.max():g}")
    return accuracy
