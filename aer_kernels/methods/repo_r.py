"""REPO-R: rare tokens that were rewarded count more, and rare ones that were not count less, as entropy asks for.

    weight_t = max(0, 1 - z logprob_t) where A_t > 0,   max(0, 1 + z logprob_t) where A_t < 0
    z: towards the target once an update: |z| doubles up to `most`, or halves, and changes sign at `least`

z > 0 raises entropy and z < 0 lowers it. The weight is not negative, so that no advantage changes its sign.

Source: arXiv:2603.11682 (ICLR 2026), appendix D.2, paper form after notes on it and a pull request of SkyRL (1896). Its target is the
initial entropy; SkyRL's example has 0.3 nats. What differs: log-probs are those of the policy that sampled, also for later updates on a
batch. There is no code by the authors, who advise an lm_head in fp32 or fp16, since bf16 biases the ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aer_kernels.entropy_control import Regulator
from aer_kernels.entropy_control.rules import Plain, Seen
from aer_kernels.methods.controlled import Controlled, ControlledConfig
from aer_kernels.methods.seam import TokenBatch, TokenTerms, check_option


@dataclass(frozen=True)
class RepoRConfig(ControlledConfig):
    """Options of REPO-R."""

    BOUND: ClassVar[str | None] = "most"
    SPEED: ClassVar[str | None] = None

    kind: str = "repo_r"
    start: float = 1e-3
    """z before the first update: in size at most `most`, and at least `least` or 0, where it stays."""
    least: float = 1e-4
    """Smallest size of z, > 0: where it changes sign."""
    most: float = 0.05
    """Largest size of z, >= least."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("least", self.least, self.least > 0, "be > 0")
        check_option("most", self.most, self.most >= self.least, f"be >= least ({self.least})")
        size = abs(self.start)
        check_option("start", self.start, size == 0 or self.least <= size <= self.most, f"be 0 or of a size in [{self.least}, {self.most}]")


class RepoR(Controlled):
    """REPO-R as a method."""

    Config = RepoRConfig
    MOVES = "rescaling"

    def __init__(self, config: RepoRConfig) -> None:
        rule = Plain(lambda seen, z: doubled(seen, z, config.least))
        self.regulator = Regulator(config, rule, config.start, (-config.most, config.most))

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        return TokenTerms(weight=(1.0 - self.regulator.value * tokens.advantages.sign() * tokens.logprobs).clamp(min=0.0))


def doubled(seen: Seen, z: float, least: float) -> float:
    """Return z, of twice the size if its sign is that of the error, else of half, or `least` on the other side of 0."""
    if seen.side * z >= 0:
        return z if seen.side == 0 else 2 * z
    return z / 2 if abs(z) / 2 >= least else seen.side * least
