"""Adaptive entropy coefficients: AER (the default) and the rules it is compared with.

config      how the coefficient is chosen
weights     difficulty: each prompt's share of it
target      what entropy is held at, step by step
smoothing   of what is noisy
rules       how the global coefficient moves: a class a rule
controller  the three together, with their state
"""

from aer_kernels.entropy_control.config import EntropyControlConfig
from aer_kernels.entropy_control.controller import AdaptiveEntropyController

__all__ = ["AdaptiveEntropyController", "EntropyControlConfig"]
