"""The reward of ARES: how often a response reasons in uncertainty is rewarded or charged by how hard its prompt is.

    N(o)    = tokens, among the trigger words if any are given, whose next `window` entropies have a mean of at least the threshold
    easy, medium, hard: prompts with an accuracy of at least 2/3, of at least 1/3, and below;   N* = round(mean N) of each of the three
    reward <- reward + e(N - N*, difficulty, right or wrong)

             margin          right                                                wrong
    easy     max(1, .15 N*)  -penalty of N above N* + margin                       .6 cap gain of N above N* + margin
    medium   max(1, .25 N*)  -penalty of N further from N* than margin             .8 cap gain of the same
    hard     max(1, .35 N*)  cap sigmoid(N - N* + margin) from N* - margin on,     1.2 cap gain of the same
                             half a penalty below

penalty = cap min(1, huber(x) / (margin + kappa)), kappa 2, 3, 4; sigmoids and gains have the scales 2, 2.5, 3; cap is `bonus`, times 1.2
for hard prompts. The threshold is a slow mean of each batch's: the median over responses of the 95th percentile of their windows.

Source: arXiv:2510.08457 (ICLR 2026), released form (shawn0728/ARES 146620e) with its constants. What differs: entropies are exact, of a
forward pass, where the release has the ten most likely tokens and one bucket for the rest; a window that is not whole has no mean; the gain
is 2 sigmoid - 1, 0 up to the margin, unless wrong_bonus is "released", where a wrong answer always gains up to .3, as sigmoid(0) is .5.
Left out: the release's coefficient of each bucket, which moves by the rounding of N* alone, and its divergence to a reference model, whose
relaxation never acts there. The list of trigger words is the release's own; without one every token may count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from aer_kernels.methods.seam import Measured, TokenBatch, TokenTerms, check_option, restored
from aer_kernels.methods.selection import quantiles, spans
from aer_kernels.validate import check_choice

WrongBonus = Literal["centred", "released"]
PERCENTILE = 0.95


@dataclass(frozen=True)
class Bucket:
    """Constants of a difficulty."""

    margin: float
    """Of the tolerated distance, as a share of N*."""
    kappa: float
    scale: float
    """Of sigmoids, in hits."""
    cap: float
    """Multiple of the largest bonus."""
    wrong: float
    """Multiple of the gain of a wrong answer."""


EASY, MEDIUM, HARD = Bucket(0.15, 2.0, 2.0, 1.0, 0.6), Bucket(0.25, 3.0, 2.5, 1.0, 0.8), Bucket(0.35, 4.0, 3.0, 1.2, 1.0)


@dataclass(frozen=True)
class AresConfig:
    """Options of the reward of ARES."""

    kind: str = "ares"
    bonus: float = 0.5
    """Largest bonus or penalty of easy and medium prompts, >= 0."""
    window: int = 4
    """Tokens after one whose entropies are averaged, >= 1."""
    triggers: tuple[str, ...] = ()
    """Words, in lower case, after which a window counts. Empty: every token."""
    ema: float = 0.99
    """Weight of the past in the threshold, in [0, 1)."""
    wrong_bonus: WrongBonus = "centred"
    """What a wrong answer gains. centred: nothing up to the margin. released: half of the largest gain at least."""

    def __post_init__(self) -> None:
        check_option("bonus", self.bonus, self.bonus >= 0, "be >= 0")
        check_option("window", self.window, self.window >= 1, "be >= 1")
        check_option("ema", self.ema, 0 <= self.ema < 1, "be in [0, 1)")
        check_choice("wrong_bonus", self.wrong_bonus, get_args(WrongBonus))


class Ares:
    """The reward of ARES as a method."""

    Config = AresConfig
    needs_logprobs = False
    needs_entropy = True

    def __init__(self, config: AresConfig) -> None:
        self.config, self._words = config, frozenset(config.triggers)
        self.also_needs = frozenset({"text"}) if config.triggers else frozenset[str]()
        self._state: dict[str, Any] = {"threshold": None}
        self._seen: float | None = None

    def reward_bonus(self, tokens: TokenBatch) -> Tensor:
        """(R,) fp32: e of each response; 0 for one without tokens."""
        rewards = tokens.need("rewards")
        means, whole = window_means(tokens, self.config.window)
        self._seen = self._threshold(tokens, means, whole)
        hits = whole & (means >= self._seen)
        if tokens.text is not None and self._words:
            hits &= torch.tensor([word(text) in self._words for text in tokens.text], dtype=torch.bool, device=hits.device)
        number = tokens.per_response(hits.double())
        easy, medium = tokens.accuracy >= 2 / 3, tokens.accuracy >= 1 / 3
        found = torch.zeros(len(number), device=number.device)
        for bucket, prompts in ((EASY, easy), (MEDIUM, medium & ~easy), (HARD, ~medium)):
            mine = prompts[tokens.prompt]
            if bool(mine.any()):
                aim = round(float(tokens.per_prompt(number)[prompts].double().mean()))
                found[mine] = reward_of(number[mine], aim, rewards[mine] == 1, bucket, self.config).float()
        return torch.where(spans(tokens)[1] > 0, found, 0.0)

    def _threshold(self, tokens: TokenBatch, means: Tensor, whole: Tensor) -> float:
        """The threshold after this batch, nats."""
        high = quantiles(tokens, means, PERCENTILE, among=whole)[tokens.per_response(whole.double()) > 0]
        before = self._state["threshold"]
        if not high.numel():
            return 0.0 if before is None else float(before)
        own = float(high.quantile(0.5))
        return own if before is None else self.config.ema * before + (1 - self.config.ema) * own

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        return TokenTerms()

    def update(self, measured: Measured) -> None:
        if self._seen is not None:
            self._state, self._seen = {"threshold": self._seen}, None

    def status(self) -> dict[str, float | None]:
        return {"uncertain_from": self._state["threshold"]}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = restored(self._state, state)


def window_means(tokens: TokenBatch, window: int) -> tuple[Tensor, Tensor]:
    """The mean entropy of the `window` tokens after each, (N,) float64 nats, and (N,) bool: whether the response has that many more."""
    entropy = tokens.need("entropy").double()
    starts, counts = (values[tokens.response] for values in spans(tokens))
    sums = torch.cat([entropy.new_zeros(1), entropy.cumsum(0)])
    place = torch.arange(len(entropy), device=entropy.device)
    whole = place + window < starts + counts
    last = torch.where(whole, place + window, place)
    return torch.where(whole, (sums[last + 1] - sums[place + 1]) / window, 0.0), whole


def word(text: str) -> str:
    """Return a token's text as it is compared with trigger words."""
    return re.sub(r"^[▁Ġ]+", "", text).strip().lower()


def reward_of(number: Tensor, aim: float, right: Tensor, bucket: Bucket, config: AresConfig) -> Tensor:
    """e of responses to prompts of one difficulty, (n,) float64.

    Args:
        number: (n,) N of each.
        aim: N*.
        right: (n,) bool.
    """
    distance, cap = number.double() - aim, config.bonus * bucket.cap
    margin = max(1.0, bucket.margin * max(aim, 1.0))
    over = (distance - margin).clamp(min=0)
    gain = (over / bucket.scale).sigmoid()
    wrong = bucket.wrong * cap * (gain if config.wrong_bonus == "released" else 2 * gain - 1)
    if bucket is HARD:
        short = 0.5 * _huber(-distance - margin, bucket.kappa)
        penalty = -cap * (short / (margin + bucket.kappa)).clamp(max=1)
        correct = torch.where(distance >= -margin, cap * ((distance + margin) / bucket.scale).sigmoid(), penalty)
    else:
        off = over if bucket is EASY else (distance.abs() - margin).clamp(min=0)
        correct = -cap * (_huber(off, bucket.kappa) / (margin + bucket.kappa)).clamp(max=1)
    return torch.where(right, correct, wrong)


def _huber(x: Tensor, kappa: float) -> Tensor:
    x = x.clamp(min=0)
    return torch.where(x <= kappa, 0.5 * x * x / kappa, x - 0.5 * kappa)
