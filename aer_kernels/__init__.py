"""Fused log-probs, entropy and policy loss from hidden states, and adaptive entropy control."""

from aer_kernels.api import LogprobsOutput, PolicyLossOutput, fused_logprobs, fused_policy_loss, logprobs_from_logits
from aer_kernels.entropy_control import BELOW_START, EXPLORE_THEN_SETTLE, AdaptiveEntropyController, EntropyControlConfig
from aer_kernels.kept_set import KeptSet
from aer_kernels.lm_head import FusedLMHead
from aer_kernels.objectives.entropy_advantages import entropy_advantages, surprisal_baseline
from aer_kernels.objectives.entropy_change import entropy_slopes
from aer_kernels.scoring import TokenMoments, fused_floors, fused_moments, support_floors

__version__ = "0.1.0"

__all__ = [
    "BELOW_START",
    "EXPLORE_THEN_SETTLE",
    "AdaptiveEntropyController",
    "EntropyControlConfig",
    "FusedLMHead",
    "KeptSet",
    "LogprobsOutput",
    "PolicyLossOutput",
    "TokenMoments",
    "entropy_advantages",
    "entropy_slopes",
    "fused_floors",
    "fused_logprobs",
    "fused_moments",
    "fused_policy_loss",
    "logprobs_from_logits",
    "support_floors",
    "surprisal_baseline",
]
