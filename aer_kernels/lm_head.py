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
        head.add_lora(rank=16, alpha=32.0)                               # from here on, train a low-rank update of a frozen head

    Args:
        in_features: D, as in nn.Linear.
        out_features: V, as in nn.Linear.
        bias: as in nn.Linear.
        device: as in nn.Linear.
        dtype: as in nn.Linear.
        softcap: final logit softcap, > 0, applied in all three forms. None is none.
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
        self.lora_scale = 1.0
        self.register_parameter("lora_a", None)
        self.register_parameter("lora_b", None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, softcap: float | None = None) -> FusedLMHead:
        """Return a fused head over the very parameters of `linear`."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear, got {type(linear).__name__}")
        head = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta", softcap=softcap)
        head.weight, head.bias = linear.weight, linear.bias
        return head

    def add_lora(self, rank: int, alpha: float) -> FusedLMHead:
        """Freeze the head and train a low-rank update of it instead: weight + alpha / rank * lora_b @ lora_a, which starts at 0."""
        if rank < 1:
            raise ValueError(f"rank must be >= 1, got {rank}")
        self.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.empty(rank, self.in_features, device=self.weight.device, dtype=self.weight.dtype))
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank, device=self.weight.device, dtype=self.weight.dtype))
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)
        self.lora_scale = alpha / rank
        return self

    def forward(  # type: ignore[override]
        self, hidden: Tensor, targets: Tensor | None = None, *, advantages: Tensor | None = None, **options: Any
    ) -> Tensor | LogprobsOutput | PolicyLossOutput:
        """Return logits without targets, `fused_logprobs` with targets, and `fused_policy_loss` with targets and advantages.

        `options` are those of the function that is called, without bias, softcap and the low-rank update, which belong to the head.
        """
        if targets is None:
            if advantages is not None or options:
                raise ValueError(f"targets must be given with {', '.join(['advantages', *options])}, got None")
            logits = super().forward(hidden)
            if self.lora_a is not None:
                logits = logits + self.lora_scale * (hidden @ self.lora_a.T) @ self.lora_b.T
            return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
        lora = {"lora_a": self.lora_a, "lora_b": self.lora_b, "lora_scale": self.lora_scale}
        own: dict[str, Any] = {"bias": self.bias, "softcap": self.softcap, **lora}
        for name in own.keys() & options.keys():
            raise TypeError(f"{name} must be left to the head, which has its own, got one as an option")
        shared = own | options
        if advantages is None:
            return fused_logprobs(hidden, self.weight, targets, **shared)
        return fused_policy_loss(hidden, self.weight, targets, advantages=advantages, **shared)
