"""Adaptive entropy coefficients: AER (the default) and the rules it is compared with.

aim         what entropy is held at: options that all methods share
target      the same, step by step
smoothing   of what is noisy
rules       how a number moves
regulator   one number with its target, rule, bounds and state, for any method
config      how the coefficient of AER is chosen
weights     difficulty: each prompt's share of it
controller  AER's regulator, with the weights
"""

from aer_kernels.entropy_control.aim import AimConfig
from aer_kernels.entropy_control.config import EntropyControlConfig
from aer_kernels.entropy_control.controller import AdaptiveEntropyController
from aer_kernels.entropy_control.presets import BELOW_START, EXPLORE_THEN_SETTLE
from aer_kernels.entropy_control.regulator import Regulator

__all__ = ["BELOW_START", "EXPLORE_THEN_SETTLE", "AdaptiveEntropyController", "AimConfig", "EntropyControlConfig", "Regulator"]
