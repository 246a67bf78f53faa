"""Fused log-probs, entropy and policy loss from hidden states, and adaptive entropy control."""

from aer_kernels.api import LogprobsOutput, PolicyLossOutput, fused_logprobs, fused_policy_loss, logprobs_from_logits
from aer_kernels.entropy_control import AdaptiveEntropyController, EntropyControlConfig
from aer_kernels.head import FusedLMHead
from aer_kernels.objectives.entropy_change import entropy_slopes

__version__ = "0.1.0"

__all__ = [
    "AdaptiveEntropyController",
    "EntropyControlConfig",
    "FusedLMHead",
    "LogprobsOutput",
    "PolicyLossOutput",
    "entropy_slopes",
    "fused_logprobs",
    "fused_policy_loss",
    "logprobs_from_logits",
]
