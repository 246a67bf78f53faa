"""How a trainer asks a method, saves it and restores it. What would train on the wrong thing, or be lost, is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from torch import Tensor

from aer_kernels.methods.seam import Method, TokenBatch, TokenTerms, moves


def ask(method: Method, tokens: TokenBatch) -> TokenTerms:
    """Return a method's terms for all tokens of an update, checked; this reads them, which is a device sync on a GPU.

    Raises:
        TypeError: the method gave something else, or a term has the wrong type.
        ValueError: a term is not a finite number a token, the method wrote into `tokens`, or it moves other things than without tokens.
    """
    name = f"{type(method).__name__}.terms"
    always = moves(method)  # first: what a method remembers of the last question is then of these tokens
    with _unwritten(tokens, name):
        terms = method.terms(tokens)
    if not isinstance(terms, TokenTerms):
        raise TypeError(f"{name} must return TokenTerms, got {type(terms).__name__}")
    terms.check(tokens)
    if terms.moved() != always:
        here, without = (", ".join(sorted(moved)) or "nothing" for moved in (terms.moved(), always))
        raise ValueError(f"{name} must move the same whatever the tokens are, got {here}, and {without} without tokens")
    return terms


def ask_bonus(method: Method, tokens: TokenBatch) -> Tensor | None:
    """Return what a method adds to the rewards, (R,), checked; None if it adds nothing.

    Raises:
        TypeError, ValueError: the method gave something else than a finite number a response, or wrote into `tokens`.
    """
    bonus = getattr(method, "reward_bonus", None)
    if bonus is None:
        return None
    name = f"{type(method).__name__}.reward_bonus"
    with _unwritten(tokens, name):
        found = bonus(tokens)
    if not isinstance(found, Tensor):
        raise TypeError(f"{name} must return a torch.Tensor with one number a response, got {type(found).__name__}")
    if found.shape != tokens.prompt.shape:
        raise ValueError(f"{name} must have shape {tuple(tokens.prompt.shape)}, got {tuple(found.shape)}")
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return found


def saved(method: Method) -> dict[str, Any]:
    """Return a method's state, checked.

    Raises:
        TypeError, ValueError: the state is nothing that JSON gives back.
    """
    state = method.state_dict()
    if not isinstance(state, dict):
        raise TypeError(f"{type(method).__name__}.state_dict must return a dictionary, got {type(state).__name__}")
    _check_plain(state, f"{type(method).__name__}.state_dict")
    return state


def restore(method: Method, state: dict[str, Any]) -> None:
    """Load a state that was `saved`.

    Raises:
        ValueError: the state is another method's, or the method does not take it over.
    """
    method.load_state_dict(state)
    found = saved(method)
    if json.dumps(found, sort_keys=True) != json.dumps(state, sort_keys=True):
        name = type(method).__name__
        wrong = sorted(key for key in {*found, *state} if json.dumps(found.get(key)) != json.dumps(state.get(key)))
        raise ValueError(f"{name}.load_state_dict must restore all that {name}.state_dict gave, got another {', '.join(wrong)}")


@contextmanager
def _unwritten(tokens: TokenBatch, name: str) -> Iterator[None]:
    """Context in which nothing may be written into the tokens."""
    before = _versions(tokens)
    yield
    written = sorted(field for field, version in _versions(tokens).items() if version != before[field])
    if written:
        raise ValueError(f"{name} must not write into the TokenBatch, got another {', '.join(written)}: clone it first")


def _versions(tokens: TokenBatch) -> dict[str, int]:
    """How often each tensor was written into."""
    found = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
    return {name: value._version for name, value in found.items() if isinstance(value, Tensor) and not value.is_inference()}


def _check_plain(value: Any, name: str) -> None:
    rule = "hold plain numbers, texts, lists and dictionaries, as JSON can"
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{name} must have texts as keys, got {key!r}: JSON makes a text of it")
            _check_plain(part, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for part in value:
            _check_plain(part, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"{name} must {rule}; got {type(value).__name__}")
