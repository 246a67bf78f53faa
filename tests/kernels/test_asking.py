"""What a method may not do when it is checked, asked, saved or restored."""

from __future__ import annotations

import json
import math

import pytest
import torch

from aer_kernels.methods import TokenBatch, TokenTerms, ask, check_method
from aer_kernels.methods.asking import ask_bonus, restore, saved
from tests.kernels.own_method import Own, OwnConfig
from tests.kernels.token_batches import batch


class SavesTensors(Own):
    def state_dict(self) -> dict[str, object]:
        return {"steps": 3, "mean": torch.ones(2)}


class NeedsTokens(Own):
    def terms(self, tokens: TokenBatch) -> TokenTerms:
        return TokenTerms(weight=(tokens.logprobs > tokens.logprobs.quantile(0.5)).float())


class Mean(Own):
    def terms(self, tokens: TokenBatch) -> TokenTerms:
        return TokenTerms(weight=torch.ones_like(tokens.logprobs) * (sum(tokens.accuracy.tolist()) / len(tokens.logprobs)))


class ForgetsEntropy(Own):
    def terms(self, tokens: TokenBatch) -> TokenTerms:
        return TokenTerms(weight=torch.full_like(tokens.entropy, 2.0))


class Nothing(Own):
    def terms(self, tokens: TokenBatch) -> TokenTerms:
        return None


class Counts(Own):
    """By the steps that it was asked, which is not allowed."""

    asked = 0

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        self.asked += 1
        return super().terms(tokens)

    def state_dict(self) -> dict[str, object]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.asked = state["asked"]


class Keys(Own):
    def state_dict(self) -> dict[str, object]:
        return {"by_length": {3: 0.5}}


class Remembers(Own):
    def state_dict(self) -> dict[str, object]:
        return {"amount": self.amount, "parts": [1, {"a": None}]}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.amount = state["amount"]


class Forgets(Remembers):
    def load_state_dict(self, state: dict[str, object]) -> None:
        pass


@pytest.mark.parametrize(
    ("cls", "match"),
    [
        (SavesTensors, r"SavesTensors.state_dict\['mean'\] must hold plain numbers, .* as JSON can; got Tensor"),
        (Keys, r"Keys.state_dict\['by_length'\] must have texts as keys, got 3: JSON makes a text of it"),
        (NeedsTokens, "NeedsTokens.terms must return terms without tokens too, .* got RuntimeError: quantile"),
        (Mean, "Mean.terms must return terms without tokens too, .* got ZeroDivisionError"),
        (
            ForgetsEntropy,
            r"ForgetsEntropy.terms must do with the fields that the method asks for, got .*: TokenBatch.entropy needs needs_entropy",
        ),
        (Counts, "Counts.terms must not change the state, got another state_dict after it"),
    ],
)
def test_a_method_that_breaks_a_rule_is_named_before_anything_runs(cls, match):
    with pytest.raises(ValueError, match=match):
        check_method(cls(OwnConfig()), given=frozenset(), on_policy=True)


def test_a_method_gives_terms():
    with pytest.raises(TypeError, match=r"Nothing.terms must return TokenTerms, got NoneType"):
        check_method(Nothing(OwnConfig()), given=frozenset(), on_policy=True)


class Writes(Own):
    def terms(self, tokens: TokenBatch) -> TokenTerms:
        advantages = tokens.advantages
        advantages[advantages < 0] = 0.0
        return TokenTerms(weight=torch.ones_like(tokens.logprobs))


class Guards(Own):
    def terms(self, tokens: TokenBatch) -> TokenTerms:
        return TokenTerms(clip_high=9.0) if len(tokens.logprobs) else TokenTerms()


class Gives(Own):
    """The terms that its class attribute names."""

    given: TokenTerms

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        return self.given


@pytest.mark.parametrize(
    ("cls", "error", "match"),
    [
        (Writes, ValueError, "Writes.terms must not write into the TokenBatch, got another advantages: clone it first"),
        (Guards, ValueError, "Guards.terms must move the same whatever the tokens are, got clip_high, and nothing without tokens"),
        (type("Alone", (Gives,), {"given": TokenTerms(entropy_scale=0.05)}), ValueError, "entropy_scale must be 1 without entropy_coef"),
        (type("Each", (Gives,), {"given": TokenTerms(clip_high=torch.ones(10))}), TypeError, "clip_high must be one plain number for all"),
        (type("Text", (Gives,), {"given": TokenTerms(clip_low="0.2")}), TypeError, "clip_low must be one plain number .* got str"),
    ],
)
def test_what_would_train_on_the_wrong_thing_is_refused(cls, error, match):
    tokens = batch()
    with pytest.raises(error, match=match):
        ask(cls(OwnConfig()), tokens)


def test_what_is_asked_last_are_the_tokens():
    """A method may keep what it saw of them until it is told of the update."""
    method, tokens = Writes(OwnConfig()), batch()
    seen = []
    method.terms = lambda tokens: seen.append(tokens) or TokenTerms(weight=torch.ones_like(tokens.logprobs))
    assert torch.equal(ask(method, tokens).weight, torch.ones(10)) and seen[-1] is tokens


@pytest.mark.parametrize(
    ("bonus", "error", "match"),
    [
        ([0.0, 1.0], TypeError, "Own.reward_bonus must return a torch.Tensor with one number a response, got list"),
        (torch.ones(1), ValueError, r"Own.reward_bonus must have shape \(\d+,\), got \(1,\)"),
        (torch.tensor(math.nan), ValueError, "Own.reward_bonus must be finite, got NaN or infinity"),
    ],
)
def test_a_bonus_is_checked(bonus, error, match):
    tokens, method = batch(), Own(OwnConfig())
    assert ask_bonus(method, tokens) is None
    method.reward_bonus = lambda tokens: bonus.expand(tokens.prompt.shape) if isinstance(bonus, torch.Tensor) and not bonus.shape else bonus
    with pytest.raises(error, match=match):
        ask_bonus(method, tokens)


def test_a_bonus_does_not_write_into_the_tokens():
    method = Own(OwnConfig())
    method.reward_bonus = lambda tokens: tokens.accuracy.zero_()[tokens.prompt]
    with pytest.raises(ValueError, match=r"Own.reward_bonus must not write into the TokenBatch, got another accuracy: clone it first"):
        ask_bonus(method, batch())


def test_a_state_is_restored_or_refused():
    state = saved(Remembers(OwnConfig(amount=2.0)))
    restore(method := Remembers(OwnConfig()), json.loads(json.dumps(state)))
    assert method.amount == 2.0
    with pytest.raises(ValueError, match=r"Forgets.load_state_dict must restore all that Forgets.state_dict gave, got another amount"):
        restore(Forgets(OwnConfig()), state)
    with pytest.raises(ValueError, match=r"Remembers.state_dict\['amount'\] must be finite, got nan"):
        saved(Remembers(OwnConfig(amount=math.nan)))
