"""How a reward function is called: by what its parameters are named, so that one written for another trainer needs no change.

(text, gold)                                      two values by place, where neither name is one of the next line's
(response, answer, prompt, level, ...)            by name, where every name is one of these or a column; completion is response
(completions, prompts, level, ..., **kwargs)      TRL's form: lists of one, conversations where a chat template is used; list of one back
(data_source, solution_str, ground_truth, extra_info)   verl's form; a number or {"score": number} back
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aer_train.names import import_named
from aer_train.types import Question
from aer_train.verify.worker import load_function

OTHERS = ("completions", "solution_str")
"""Parameters by which the forms of TRL and verl are known."""


@dataclass(frozen=True)
class Signature:
    """The parameters of a function that can be passed by name."""

    required: frozenset[str]
    optional: frozenset[str]
    any_name: bool
    """Whether it takes whatever it is given by name."""
    by_place: bool
    """Whether it can be called with two values by place."""

    def values(self, question: Question) -> dict[str, Any]:
        """Return what there is to be passed by name: the question's own parts, and the columns of its row."""
        response, answer, prompt, columns, *_ = question
        if self._takes(OTHERS[0]):
            return as_batch([question])
        if self._takes(OTHERS[1]):
            own = {"data_source": "", "extra_info": {}} | dict(columns)
            return own | {"solution_str": response, "ground_truth": answer}
        return dict(columns) | {"response": response, "completion": response, "answer": answer, "prompt": prompt}

    def missing(self, question: Question) -> list[str]:
        """Return the names that it needs and that this question does not have; none where it can be called by place."""
        values = self.values(question)
        return [] if self._is_called_by_place(values) else sorted(self.required - values.keys())

    def arguments(self, question: Question) -> tuple[list[Any], dict[str, Any]]:
        """Return what the function is called with, by place and by name, as JSON can hold it; other values arrive as text."""
        values = self.values(question)
        if self._is_called_by_place(values):
            return [question.response, question.answer], {}
        taken = values if self.any_name else {name: values[name] for name in values if name in self.required | self.optional}
        return [], plain_json(taken)

    def _is_called_by_place(self, values: dict[str, Any]) -> bool:
        """With one name that is known, another that is not is a misspelled one or a column that is missing, and not the gold answer."""
        return self.by_place and bool(self.required) and self.required.isdisjoint(values)

    def _takes(self, name: str) -> bool:
        return name in self.required | self.optional


def as_batch(questions: Sequence[Question]) -> dict[str, list[Any]]:
    """Return questions in TRL's form: a list for each name, with None where a row lacks a column."""
    rows = [{"answer": question.answer} | dict(question.columns) for question in questions]
    columns = {name: None for row in rows for name in row if name not in ("prompt", "completion")}
    found: dict[str, list[Any]] = {
        "prompts": [question.prompt if question.messages is None else question.messages for question in questions],
        "completions": [
            question.response if question.messages is None else [{"role": "assistant", "content": question.response}]
            for question in questions
        ],
    }
    return plain_json(found | {name: [row.get(name) for row in rows] for name in columns})


def plain_json(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as JSON can hold them; dates and the like become text."""
    copy: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return copy


def signature_of(function: Callable[..., Any]) -> Signature:
    """Return the signature of a function; a builtin without one is called with two values by place."""
    try:
        found = inspect.signature(function)
    except ValueError:
        return Signature(frozenset({"(by place)"}), frozenset(), any_name=False, by_place=True)
    kinds, empty = inspect.Parameter, inspect.Parameter.empty
    named = [p for p in found.parameters.values() if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    only_by_place = [p.name + " (by place)" for p in found.parameters.values() if p.kind is kinds.POSITIONAL_ONLY and p.default is empty]
    try:
        found.bind("response", "answer")
        by_place = found.parameters.keys().isdisjoint(OTHERS)
    except TypeError:
        by_place = False
    return Signature(
        frozenset([*only_by_place, *(p.name for p in named if p.default is empty)]),
        frozenset(p.name for p in named if p.default is not empty),
        any(p.kind is kinds.VAR_KEYWORD for p in found.parameters.values()),
        by_place,
    )


def check_function(name: str, path: str, others: str) -> Signature:
    """Return the signature of the function that a dotted path names.

    Args:
        name: of the option.
        others: what it may be besides a dotted path.
    Raises:
        ValueError - there is none, or nothing that it could be called with.
    """
    try:
        import_named(path)
        function = load_function(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name} must be {others} or a dotted path to a function, got {path!r}: {error}") from error
    if not callable(function):
        raise ValueError(f"{name} must name a function, got {path!r} of type {type(function).__name__}")
    signature = signature_of(function)
    if not signature.by_place and not signature.any_name and not signature.required | signature.optional:
        raise ValueError(
            f"{name} must name a function of (response, answer) or of names in its row, got {path!r}, which takes none of them"
        )
    return signature
