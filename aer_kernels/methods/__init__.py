"""Entropy methods behind one seam. Each is a small file that says what every token of an update is worth.

    method = make_method(PositiveAdvantageConfig(target=0.3))
    terms = ask(method, tokens)               # TokenBatch -> TokenTerms, checked, before the update is cut into micro-batches
    ...forward, backward, optimizer steps...
    method.update(measured)

`seam` has the records and the protocol, `kinds` every method by name. A method of your own is a class with the same functions, and a
trainer takes its dotted path as kind; docs/methods.md shows a whole one. Three files are for trainers that have more than this seam:
`segments` (credit by segment), `token_q` (a Q-value of every token) and `advantage_variance` (a critic that says how uncertain it is).
"""

from __future__ import annotations

from aer_kernels.methods.adapo import Adapo, AdapoConfig
from aer_kernels.methods.aent import AEnt, AEntConfig
from aer_kernels.methods.aer import AER
from aer_kernels.methods.ares import Ares, AresConfig
from aer_kernels.methods.arm import ARM, ARMConfig
from aer_kernels.methods.asking import ask
from aer_kernels.methods.clip_cov import ClipCov, ClipCovConfig
from aer_kernels.methods.combined import Combined
from aer_kernels.methods.controlled import Controlled, ControlledConfig
from aer_kernels.methods.entrocraft import Entrocraft, EntrocraftConfig
from aer_kernels.methods.entropic import EntroPIC, EntroPICConfig
from aer_kernels.methods.entropy_advantage import EntropyAdvantage, EntropyAdvantageConfig
from aer_kernels.methods.epo import EPO, EPOConfig
from aer_kernels.methods.erc import ERC, ERCConfig
from aer_kernels.methods.forking_tokens import ForkingTokens, ForkingTokensConfig
from aer_kernels.methods.kinds import METHODS, check_method, make_method, method_class, method_for
from aer_kernels.methods.kl_cov import KLCov, KLCovConfig
from aer_kernels.methods.mai_clip import MAIClip, MAIClipConfig
from aer_kernels.methods.pepo import PEPO, PEPOConfig
from aer_kernels.methods.positive_advantage import PositiveAdvantage, PositiveAdvantageConfig
from aer_kernels.methods.relax import Relax, RelaxConfig
from aer_kernels.methods.repo_r import RepoR, RepoRConfig
from aer_kernels.methods.seam import Measured, Method, Stateless, TokenBatch, TokenTerms
from aer_kernels.methods.siren import SIREN, SIRENConfig
from aer_kernels.methods.stare import Stare, StareConfig
from aer_kernels.methods.steer import Steer, SteerConfig
from aer_kernels.methods.token_targets import TokenTargets, TokenTargetsConfig

__all__ = [
    "AER",
    "ARM",
    "EPO",
    "ERC",
    "METHODS",
    "PEPO",
    "SIREN",
    "AEnt",
    "AEntConfig",
    "ARMConfig",
    "Adapo",
    "AdapoConfig",
    "Ares",
    "AresConfig",
    "ClipCov",
    "ClipCovConfig",
    "Combined",
    "Controlled",
    "ControlledConfig",
    "EPOConfig",
    "ERCConfig",
    "EntroPIC",
    "EntroPICConfig",
    "Entrocraft",
    "EntrocraftConfig",
    "EntropyAdvantage",
    "EntropyAdvantageConfig",
    "ForkingTokens",
    "ForkingTokensConfig",
    "KLCov",
    "KLCovConfig",
    "MAIClip",
    "MAIClipConfig",
    "Measured",
    "Method",
    "PEPOConfig",
    "PositiveAdvantage",
    "PositiveAdvantageConfig",
    "Relax",
    "RelaxConfig",
    "RepoR",
    "RepoRConfig",
    "SIRENConfig",
    "Stare",
    "StareConfig",
    "Stateless",
    "Steer",
    "SteerConfig",
    "TokenBatch",
    "TokenTargets",
    "TokenTargetsConfig",
    "TokenTerms",
    "ask",
    "check_method",
    "make_method",
    "method_class",
    "method_for",
]
