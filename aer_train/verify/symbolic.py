"""Symbolic equality of two answers. Called in the pool's processes only, so that whatever goes wrong takes nothing with it.

Single values, equations and inequalities are read by `algebra` and compared by their values; `match` compares the shape.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import partial

from mpmath import mp, mpc

from aer_train.verify.algebra.identity import Work, constant, proportional
from aer_train.verify.algebra.identity import equal as same_value
from aer_train.verify.algebra.numbers import inexact
from aer_train.verify.algebra.parse import parse
from aer_train.verify.algebra.tokens import FUNCTION_NAMES
from aer_train.verify.algebra.tree import Node, Unreadable
from aer_train.verify.brackets import divided
from aer_train.verify.choice import choice
from aer_train.verify.equality import decide, exactly, is_rounded, is_text, last_digit, stated, without_unit
from aer_train.verify.intervals import TURNED
from aer_train.verify.match import Rules, chained, forms
from aer_train.verify.quantity import in_base, quantity
from aer_train.verify.realsets import is_real_set, same_union
from aer_train.verify.shape import shape

_RELATION = re.compile(r"(=|<|>|\\(?:le|ge|ne|equiv)(?![A-Za-z]))")
_RUN = re.compile(r"(?<![A-Za-z\\_{])[A-Za-z]{3,}(?![A-Za-z}])")
_FUNCTIONS = {*FUNCTION_NAMES.split("|"), "infinity", "infty", "mod"}
_WORDS = re.compile(r"(?<![A-Za-z\\_{])([A-Za-z]{3,}) ([A-Za-z]{3,})(?![A-Za-z}])")
_PROSE = re.compile(
    r"(?:^| )(?:for|and|or|if|iff|when|where|otherwise|not|no|the|is|are|of|with|all|any|to|than|but|as|by|at|on|so|it|we|else)(?= |$)",
    re.IGNORECASE,
)


def equal(answer: str, gold: str) -> str:
    """Return correct, wrong or gold_unparseable. No timeouts of its own: the parent has the clock."""
    expected, work = stated(gold), Work()
    try:
        if not _readable(expected):
            return "gold_unparseable"
        rules = Rules(partial(_equal_values, work), partial(_rounded, work), partial(same_union, work))
        return "correct" if decide(stated(answer), expected, rules) else "wrong"
    except RecursionError:  # brackets within brackets within brackets
        return "wrong"


def _readable(text: str) -> bool:
    if is_text(text) or choice(text).letter or quantity(text, gold=True) or in_base(text):
        return True
    taken = shape(text)
    if len(taken.parts) > 1 or taken.kind != "value":
        return is_real_set(text) or (taken.parts != [text] and all(_readable(part) for part in taken.parts))
    if (said := chained(taken)[0]) != text:
        return _readable(said)
    try:
        return all(_parsed(part, gold=True) is not None for part in divided(forms(text)[0] if r"\approx" in text else text, _RELATION)[::2])
    except Unreadable:
        return False


def _equal_values(work: Work, answer: str, gold: str) -> bool:
    known = exactly(answer, gold)
    if known is not None:
        return known
    if _has_prose(answer, gold):
        return False
    try:
        found, expected = divided(answer, _RELATION), divided(gold, _RELATION)
        if len(found) > 1 or len(expected) > 1:
            return _same_relation(work, found, expected)
        return same_value(_parsed(answer), _parsed(gold, gold=True), work)
    except Unreadable:
        return False


def _has_prose(answer: str, gold: str) -> bool:
    """Whether an answer has words, which would be read as products of letters: not 0 is not n o t 0."""
    plain = without_unit(answer)[0]
    runs = set(_RUN.findall(plain)) - _FUNCTIONS
    said = any(not _FUNCTIONS.intersection(pair) for pair in _WORDS.findall(plain))
    return said or bool(_PROSE.search(plain)) or not set("".join(runs)) <= set(gold)


def _parsed(text: str, gold: bool = False) -> Node:
    return parse(without_unit(text, gold=gold)[0].replace("%", ""))


def _same_relation(work: Work, found: list[str], expected: list[str]) -> bool:
    """Whether two equations or inequalities, or chains of them, are the same up to a factor, and to being read from the right."""
    if len(found) != len(expected) or len(found) == 1:
        return False
    turned = [TURNED.get(part, part) for part in reversed(found)]
    return _same_chain(work, found, expected) or _same_chain(work, turned, expected)


def _same_chain(work: Work, found: list[str], expected: list[str]) -> bool:
    for place in range(1, len(expected), 2):
        sign, wanted = found[place], expected[place]
        if not _difference(expected, place, True).symbols:  # any two numbers are proportional
            sides = zip(found[place - 1 : place + 2 : 2], expected[place - 1 : place + 2 : 2], strict=True)
            if sign != wanted or not all(same_value(_parsed(a), _parsed(b, gold=True), work) for a, b in sides):
                return False
            continue
        factor = proportional(_difference(found, place, False), _difference(expected, place, True), work)
        if not factor or (sign if factor > 0 else TURNED.get(sign, sign)) != wanted:
            return False
    return True


def _difference(chain: list[str], place: int, gold: bool) -> Node:
    left, right = _parsed(chain[place - 1].strip(), gold), _parsed(chain[place + 1].strip(), gold)
    return Node("add", (left, Node("neg", (right,))))


def _rounded(work: Work, exact: str, decimal: str) -> bool:
    r"""Whether the value of an expression is a decimal to its last digit, give or take one."""
    approximation = quantity(decimal, letter_units=True)
    try:
        if approximation is None:
            return _equal_values(work, exact, decimal)
        value = constant(_parsed(exact), work)
    except Unreadable:
        return False
    if value is None:
        return False
    return not isinstance(value, mpc) and is_rounded(Fraction(mp.nstr(inexact(value), 60)), approximation.value, last_digit(decimal))
