"""Who is measured. A provider that is not installed, or cannot do a kind of work, is listed with the reason."""

from benchmarks.providers.base import Inapplicable, Provider, Unavailable, prepare
from benchmarks.providers.cce import CCE, CCE_UNFILTERED
from benchmarks.providers.described import PRIME_RL
from benchmarks.providers.eager import COMPILED, EAGER
from benchmarks.providers.fla import FLA
from benchmarks.providers.gemms import GEMMS
from benchmarks.providers.liger import LIGER_CE, LIGER_GRPO, LIGER_SCALED_CE
from benchmarks.providers.native import NATIVE
from benchmarks.providers.ours import OURS, OURS_TORCH
from benchmarks.providers.quack import QUACK, QUACK_SCALED
from benchmarks.providers.trl import TRL
from benchmarks.providers.verl import VERL_KERNEL, VERL_TORCH

PROVIDERS = (
    OURS, OURS_TORCH, EAGER, COMPILED, GEMMS, LIGER_GRPO, LIGER_SCALED_CE, LIGER_CE, VERL_KERNEL, VERL_TORCH, TRL, PRIME_RL,
    CCE, CCE_UNFILTERED, QUACK, QUACK_SCALED, FLA, NATIVE,
)  # fmt: skip

__all__ = ["PROVIDERS", "Inapplicable", "Provider", "Unavailable", "prepare"]
