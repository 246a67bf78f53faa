"""The seam between a trainer and a method: what a method sees of an update, what it decides for each token, what it is told afterwards.

    loss = sum_t n_t [ - weight_t s(r_t, A_t + shift_t) + divergence_coef_t |k1_t| ]  -  sum_t m_t entropy_scale entropy_coef_t H_t
           + 1/R sum_i statistic_coef_i S_i

s is the trainer's surrogate with bounds clip_low, clip_high and dual_clip; n and m are its aggregation (equation (9) of
`aer_kernels.reference`); S_i is a statistic that the method itself takes of a response's hidden states. A method decides for all tokens of
an update at once. No result can then depend on how the update is cut into micro-batches or spread over ranks. A method needs torch alone:
any trainer can make a `TokenBatch` and apply `TokenTerms`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from aer_kernels.entropy_control.aim import check_option as check_option
from aer_kernels.kept_set import KeptSet

OF_TOKENS = ("entropy", "current_entropy", "reference_entropy", "kept_entropy", "mean_surprise")
"""Optional fields of `TokenBatch` with a number a token."""


@dataclass(frozen=True)
class TokenBatch:
    """All loss tokens of an update, over all micro-batches and ranks, flat and detached, by response and then position.

    There are N tokens of R responses to P prompts. All numbers are of the policy that sampled, before the first optimizer step.
    """

    logprobs: Tensor
    """(N,) fp32, log-probs of the sampled tokens, nats."""
    advantages: Tensor
    """(N,) fp32."""
    response: Tensor
    """(N,) int64 in [0, R), ascending: which response a token belongs to. A response that is masked has a number and no token."""
    position: Tensor
    """(N,) int64: the place of a token in its response, from 0."""
    prompt: Tensor
    """(R,) int64 in [0, P), ascending: which prompt a response answers."""
    accuracy: Tensor
    """(P,) fp32 in [0, 1]: mean verified reward of each prompt's responses."""
    seed: int = 0
    """For random choices, below 2^63 as torch needs it. A trainer gives another one at every update."""
    entropy: Tensor | None = None
    """(N,) fp32, entropy of the distribution that each token was drawn from, nats. None unless the method needs it."""
    rewards: Tensor | None = None
    """(R,) fp32: verified reward of each response. None where the trainer has none."""
    ids: Tensor | None = None
    """(R,) int64: names each response in random draws, so that these do not depend on the order of the responses. None: its number."""
    prompt_logprobs: Tensor | None = None
    """(P,) fp32, nats: mean log-prob of each prompt's tokens but the first. None unless the method `also_needs` it."""
    text: Sequence[str] | None = None
    """N strings: each token, decoded by itself. None unless the method `also_needs` it."""
    current_entropy: Tensor | None = None
    """(N,) fp32, nats: entropy under the present policy, for the tokens of an update after the first. None unless the method `also_needs`
    it, and at the first update, where it is `entropy`."""
    kept_entropy: Tensor | None = None
    """(N,) fp32, nats: entropy over the method's own `kept` set of each distribution. None unless the method `also_needs` it."""
    mean_surprise: Tensor | None = None
    """(N,) fp32, nats: sum_v p_v^2 (log p_v + H) of each distribution, `squares_surprise` of `aer_kernels.fused_moments`. None unless the
    method `also_needs` it."""
    reference_entropy: Tensor | None = None
    """(N,) fp32, nats: entropy of the policy that the run began with, after the same tokens. None unless the method `also_needs` it."""
    statistic: Tensor | None = None
    """(R,) fp32: what the method's own `statistic` finds in the hidden states of each response. None unless the method `also_needs` it."""

    def __post_init__(self) -> None:
        shapes = {
            "logprobs": ("advantages", "response", "position", *OF_TOKENS),
            "prompt": ("rewards", "ids", "statistic"),
            "accuracy": ("prompt_logprobs",),
        }
        for like, names in shapes.items():
            shape = tuple(getattr(self, like).shape)
            for name in names:
                value = getattr(self, name)
                if value is not None and tuple(value.shape) != shape:
                    raise ValueError(f"{name} must have shape {shape} like {like}, got {tuple(value.shape)}")
        if self.text is not None and len(self.text) != len(self.logprobs):
            raise ValueError(f"text must have {len(self.logprobs)} strings, one a token, got {len(self.text)}")

    @property
    def prompt_of_token(self) -> Tensor:
        """(N,) int64 in [0, P): which prompt a token belongs to."""
        return self.prompt[self.response]

    def need(self, name: str) -> Tensor:
        """Return an optional tensor that a method cannot do without.

        Raises:
            ValueError: it is not there.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"{name} must be given in the TokenBatch for this method, got None")
        return value

    def per_response(self, values: Tensor) -> Tensor:
        """Sum a number of each token, (N,), over each response. Returns (R,) float64."""
        total = torch.zeros(self.prompt.shape, dtype=torch.float64, device=values.device)
        return total.index_add_(0, self.response, values.double())

    def per_prompt(self, values: Tensor) -> Tensor:
        """Average a number of each response, (R,), over the prompt's responses that have tokens. Returns (P,) fp32, 0 where none has."""
        there = self.per_response(torch.ones_like(self.logprobs)) > 0
        owner, found = self.prompt[there], values[there].float()
        counts = torch.zeros(self.accuracy.shape, dtype=torch.int64, device=owner.device).index_add_(0, owner, torch.ones_like(owner))
        if not owner.numel():
            return torch.zeros_like(self.accuracy)
        place = torch.arange(owner.numel(), device=owner.device) - (counts.cumsum(0) - counts)[owner]
        table = found.new_zeros(len(counts), int(counts.max())).index_put_((owner, place), found)
        return table.sum(1) / counts.clamp(min=1)


@dataclass(frozen=True)
class TokenTerms:
    """What each token of a `TokenBatch` is worth. None leaves what the trainer has on its own."""

    weight: Tensor | None = None
    """(N,) >= 0: multiplies the policy term. None: 1."""
    shift: Tensor | None = None
    """(N,): added to the advantage. None: 0."""
    entropy_coef: Tensor | None = None
    """(N,): times entropy_scale it is the coefficient of the token's entropy; > 0 raises entropy, < 0 lowers it. None: 0."""
    entropy_scale: float = 1.0
    """One factor for all entropy coefficients. A controller puts the number that it moves here: its effect on entropy is then measured even
    while it is 0."""
    divergence_coef: Tensor | None = None
    """(N,) >= 0: coefficient of |k1|, the distance of the log-prob from that of the policy that sampled. None: 0."""
    clip_low: float | None = None
    """The ratio's lower bound is 1 - clip_low, >= 0. None: the trainer's."""
    clip_high: float | None = None
    """The ratio's upper bound is 1 + clip_high, >= 0. None: the trainer's."""
    held: Tensor | None = None
    """(N,) >= 0: how much a token counts in the entropy that `Measured` reports. None: 1."""
    dual_clip: float | None = None
    """> 1: largest ratio of a token with a negative advantage. None: the trainer's."""
    statistic_coef: Tensor | None = None
    """(R,): coefficient of the method's own statistic of each response. None: 0."""

    def moved(self) -> frozenset[str]:
        """Return the names of what these terms change."""
        found = {field.name for field in fields(self) if getattr(self, field.name) is not None}
        return frozenset(found - {"entropy_scale", "held"})

    def check(self, tokens: TokenBatch) -> None:
        """Check that every tensor has one finite number a token, >= 0 where it must be. Reads them, which is a device sync on a GPU.

        Raises:
            ValueError: a shape is wrong, or a number is not allowed. TypeError: a number a token is no tensor.
        """
        for name in ("weight", "shift", "entropy_coef", "divergence_coef", "held"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor with one number a token, or None, got {type(value).__name__}")
            check_option(name, tuple(value.shape), value.shape == tokens.logprobs.shape, f"have shape {tuple(tokens.logprobs.shape)}")
            check_option(name, "NaN or infinity", bool(value.isfinite().all()), "be finite")
            signed = name in ("shift", "entropy_coef") or not value.numel()
            check_option(name, 0.0 if signed else float(value.min()), signed or float(value.min()) >= 0, "be >= 0")
        for name in ("entropy_scale", "clip_low", "clip_high", "dual_clip"):
            number = getattr(self, name)
            if not (isinstance(number, int | float) or (number is None and name != "entropy_scale")):
                raise TypeError(f"{name} must be one plain number for all tokens, got {type(number).__name__}")
        check_option("entropy_scale", self.entropy_scale, math.isfinite(self.entropy_scale), "be finite")
        alone = self.entropy_scale != 1 and self.entropy_coef is None
        check_option("entropy_scale", self.entropy_scale, not alone, "be 1 without entropy_coef, which it multiplies")
        for name in ("clip_low", "clip_high"):
            bound = getattr(self, name)
            check_option(name, bound, bound is None or bound >= 0, "be >= 0")
        check_option("dual_clip", self.dual_clip, self.dual_clip is None or self.dual_clip > 1, "be > 1")
        coef = self.statistic_coef
        if coef is not None:
            check_option("statistic_coef", tuple(coef.shape), coef.shape == tokens.prompt.shape, f"have shape {tuple(tokens.prompt.shape)}")
            check_option("statistic_coef", "NaN or infinity", bool(coef.isfinite().all()), "be finite")


@dataclass(frozen=True)
class Measured:
    """What an update showed, over all its loss tokens on all ranks, under the policy that sampled them."""

    entropy: float
    """Sum of the token entropies, nats, each times `TokenTerms.held`: those over the method's `kept` set, where it has one. Divide it by
    `tokens` or by `responses` for a mean."""
    tokens: float
    """Number of loss tokens, each counted as `TokenTerms.held` says."""
    responses: float
    """Number of responses that have loss tokens, each counted as the mean `TokenTerms.held` of its tokens."""
    unsolved: float | None = None
    """Share of the prompts that no sample solved, in [0, 1]."""
    slopes: tuple[float, float] | None = None
    """First-order effect on the entropy of the policy gradient, and of one unit of entropy_scale (`aer_kernels.entropy_slopes`)."""


class Method(Protocol):
    """A way to treat the tokens of an update. All that it remembers between updates is in its state.

    The class attribute `Config` names the frozen dataclass of its options, which must have the field `kind`. A trainer makes the method
    from it: `Method(config)`. Six things are optional:

    * also_needs, a frozenset of names: further fields of `TokenBatch` that must be there. They are prompt_logprobs, text, statistic,
      current_entropy, reference_entropy, kept_entropy and mean_surprise. With current_entropy the trainer asks `terms` again before each
      update on a batch after the first. reference_entropy costs a pass of the first policy, and the memory for it where the trainer does
      not hold it anyway.
    * needs_logprobs, False for a method that does not look at `TokenBatch.logprobs`: a trainer that records none then needs no pass for
      them.
    * learns, False for a method whose decisions do not depend on what `update` is told: a trainer may then leave out passes that only
      measure.
    * kept, an `aer_kernels.KeptSet`, for a method that also_needs kept_entropy: which tokens of each distribution its entropy is over. The
      entropy that `TokenTerms.entropy_coef` raises is then that one.
    * statistic(hidden), for a method that also_needs statistic: from the last hidden states (T, D) of a response's T tokens to a number,
      0-dim and differentiable.
    * reward_bonus(tokens), (R,): what the trainer adds to the rewards before it forms advantages.
    """

    needs_entropy: bool
    """Whether `terms` needs `TokenBatch.entropy`. It costs one forward pass of the policy before the update."""

    def __init__(self, config: Any) -> None: ...

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        """Decide what each token is worth. This must not change the state: a trainer may ask about parts of an update first. There may be
        no token at all. Which fields of the terms are there must not depend on the tokens, and nothing may be written into them."""

    def update(self, measured: Measured) -> None:
        """Learn from an update, after its optimizer steps."""

    def status(self) -> dict[str, float | None]:
        """Return numbers to log. A controller names its own coef, saturated, target, initial, controlled and smoothed."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that `load_state_dict` needs to go on as if nothing had happened, in plain numbers that JSON can hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state.

        Raises:
            ValueError: the state is another method's, or not whole.
        """


class Stateless:
    """Base of the methods that remember nothing: they need only `Config`, `__init__` and `terms`."""

    needs_entropy = False
    learns = False
    also_needs: frozenset[str] = frozenset()

    def update(self, measured: Measured) -> None:
        """Learn nothing."""

    def status(self) -> dict[str, float | None]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restored({}, state)


HELD = ("controlled", "smoothed", "target", "initial")
"""Numbers of `Method.status` that say what is held, and how well."""

INERT = frozenset({"clip_low", "clip_high", "dual_clip", "divergence_coef"})
"""What does nothing while the ratio is 1, as it is at the first update of each batch."""


def also_needs(method: Method) -> frozenset[str]:
    """Return the optional fields of `TokenBatch`, beside entropy, that a method cannot do without."""
    return frozenset(getattr(method, "also_needs", ()))


def needs_logprobs(method: Method) -> bool:
    """Whether a method looks at the log-probs of the tokens."""
    return bool(getattr(method, "needs_logprobs", True))


def learns(method: Method) -> bool:
    """Whether a method's decisions depend on what it is told of earlier updates."""
    return bool(getattr(method, "learns", True))


def kept_of(method: Method) -> KeptSet | None:
    """Return the set of tokens that a method's own entropy is over. None: all."""
    found: KeptSet | None = getattr(method, "kept", None)
    return found


def needs_pass(method: Method) -> bool:
    """Whether a method cannot be asked before the policy has been run over its tokens or prompts."""
    return method.needs_entropy or bool(also_needs(method))


def terms_of_nothing(method: Method) -> TokenTerms:
    """Return a method's terms for an update without tokens: what it changes is there, empty.

    Raises:
        ValueError: the method cannot do without tokens, or without a field that it does not ask for. TypeError: it gives no terms.
    """
    none, whole = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    names = {"rewards"} | also_needs(method) | ({"entropy"} if method.needs_entropy else set())
    optional: dict[str, Any] = {name: () if name == "text" else none for name in names}
    tokens = TokenBatch(none, none, whole, whole, whole, none, ids=whole, **optional)
    name = type(method).__name__
    try:
        terms = method.terms(tokens)
    except (IndexError, RuntimeError, ZeroDivisionError) as error:
        found = f"{type(error).__name__}: {error}"
        raise ValueError(f"{name}.terms must return terms without tokens too, as an update can have none; got {found}") from error
    except (AttributeError, TypeError) as error:
        fields_of = "TokenBatch.entropy needs needs_entropy = True, and other optional fields a place in also_needs"
        raise ValueError(f"{name}.terms must do with the fields that the method asks for, got {error}: {fields_of}") from error
    if not isinstance(terms, TokenTerms):
        raise TypeError(f"{name}.terms must return TokenTerms, got {type(terms).__name__}")
    return terms


def moves(method: Method) -> frozenset[str]:
    """Return the names of what a method changes."""
    return terms_of_nothing(method).moved()


def reported(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return what a method applied in an update, and what it aims at and holds after it.

    Args:
        before: its status when the update's tokens were weighed.
        after: its status after the update.
    """
    applied = {name: value for name, value in before.items() if name not in HELD}
    return {**{name: value for name, value in after.items() if name not in applied}, **applied}


def restored(expected: Mapping[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a state, after checking that it has the names of `expected` and no others.

    Raises:
        ValueError: a name is missing or unknown.
    """
    if set(state) != set(expected):
        raise ValueError(f"state must hold {sorted(expected)}, got {sorted(state)}")
    return dict(state)
