"""A linear head that can return log-probs or the policy loss instead of logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aer_kernels.api import LogprobsOutput, PolicyLossOutput, fused_logprobs, fused_policy_loss


class FusedLMHead(nn.Linear):
    """nn.Linear whose forward also computes `fused_logprobs` or `fused_policy_loss`, so that module hooks (FSDP, ZeRO) see every use.

        head = FusedLMHead.from_linear(model.lm_head)                    # shares the parameters, also tied ones
        head(hidden)                                                     # logits, as nn.Linear
        head(hidden, targets, temperature=0.7)                           # LogprobsOutput
        head(hidden, targets, advantages=advantages, entropy_coef=coef)  # PolicyLossOutput

    Args:
        in_features, out_features, bias, device, dtype: as nn.Linear (D, V).
        softcap: > 0 or None: final logit softcap, applied in all three forms.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        softcap: float | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.softcap = softcap

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, softcap: float | None = None) -> FusedLMHead:
        """A fused head over the very parameters of `linear`."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear, got {type(linear).__name__}")
        head = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta", softcap=softcap)
        head.weight, head.bias = linear.weight, linear.bias
        return head

    def forward(  # type: ignore[override]
        self, hidden: Tensor, targets: Tensor | None = None, *, advantages: Tensor | None = None, **options: Any
    ) -> Tensor | LogprobsOutput | PolicyLossOutput:
        """Logits without targets; `fused_logprobs` with targets; `fused_policy_loss` with targets and advantages.

        `options` are those of the function that is called, without bias and softcap, which belong to the head.
        """
        if targets is None:
            if advantages is not None or options:
                raise ValueError(f"targets must be given with {', '.join(['advantages', *options])}, got None")
            logits = super().forward(hidden)
            return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
        shared = {"bias": self.bias, "softcap": self.softcap, **options}
        if advantages is None:
            return fused_logprobs(hidden, self.weight, targets, **shared)
        return fused_policy_loss(hidden, self.weight, targets, advantages=advantages, **shared)
