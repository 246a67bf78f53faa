r"""Equality part by part. How two single values compare is asked of `Rules`, so that the exact and the symbolic comparison share this.

An interval is not a set, a list is not a tuple, and neither is its member: only a list and a set of the same values are the same, in any
order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from aer_train.verify.brackets import split
from aer_train.verify.counted import singulars
from aer_train.verify.intervals import is_inequality
from aer_train.verify.latex import squeeze
from aer_train.verify.shape import DENIED, NAME, ORDERED, VARIABLE, Shape, shape

Equal = Callable[[str, str], bool | None]
"""(answer, gold) -> whether they are equal; None when that is not known."""

MAX_PARTS = 64
"""An answer with more parts is compared as one text."""

MAX_UNLIKE = 12
"""Parts of a list that may differ in their text; every such part is compared with every other."""


class Rules(NamedTuple):
    """The comparisons of single parts that a caller chooses."""

    value: Equal
    """Two single values, or two equations or inequalities."""
    rounded: Equal
    """(exact, decimal): whether the decimal is the exact value as far as its digits go."""
    union: Equal
    """Two sets of real numbers."""


_FUNCTION = re.compile(r"[A-Za-z]\([A-Za-z]\)")  # f(x) = 2x + 3 is y = 2x + 3
_NAME_BEHIND = re.compile(r"[\w)}\]] [A-Za-z](?:_(?:\w|\{[^{}]*\}))?$")  # x = 1 y = 2
_PROSE = re.compile(r"(?<![A-Za-z\\])(?:[A-Za-z]{2,} [A-Za-z]{2,}|(?:if|iff|for|when|where|with|unless)(?![A-Za-z]))")
_INSIDE = re.compile(r"\([^()]*\)|[_^] ?(?:\{[^{}]*\}|\w)")
_OWN_SYMBOL = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_COUNTED = re.compile(r"(?:\\text ?\{ ?)?-?[\d.,]+ ?(?:\\text ?\{ ?)?((?:[A-Za-z]{2,}[ -]?)+)\}?")
_WORDS = re.compile(r"[a-z]+")
_VARIABLE = re.compile(rf"(?!\\pi$){VARIABLE}|")


def same(answer: str, gold: str, rules: Rules) -> bool | None:
    """Return whether two cleaned texts are equal part by part; None when some single comparison is not known and none decides."""
    found = _same_shape(answer, gold, rules)
    if found is False and is_inequality(answer) and is_inequality(gold):  # -x > -1 and x < 1, y < x and x > y
        return rules.value(answer, gold)
    return found


def _same_shape(answer: str, gold: str, rules: Rules) -> bool | None:
    a, g = shape(answer), shape(gold)
    if max(len(a.parts), len(g.parts)) > MAX_PARTS:
        return squeeze(answer) == squeeze(gold)
    kinds = {a.kind, g.kind}
    if kinds == {"value"}:
        return _same_value(answer, gold, a, g, rules)
    if _other_name(a.name, g.name):
        return False
    if "union" in kinds and kinds <= {"union", "list", *ORDERED}:
        return True if _in_any_order(a.parts, g.parts, rules) else rules.union(answer, gold)
    if kinds <= {"list", "set", "value"}:
        return _in_any_order(a.parts, g.parts, rules)
    if a.kind != g.kind:
        return False
    return _in_order(a.parts, g.parts, rules)


def forms(text: str) -> list[str]:
    r"""What a value is called in a chain like A = \frac97 \approx 1.29: its last exact form, and the decimal behind it."""
    sides = [split(side, "=") for side in split(text, "\\approx")]
    if DENIED.search(text) or any(_NAME_BEHIND.search(part) for parts in sides for part in parts[1:-1]):
        return [text]
    found = [parts[0] if len(parts) == 2 and parts[0] and _VARIABLE.fullmatch(parts[1]) else parts[-1] for parts in (sides[0], sides[-1])]
    if len(sides) == 1:
        return found[:1]
    return found[1:] if _VARIABLE.fullmatch(found[0]) else found


def _same_value(answer: str, gold: str, a: Shape, g: Shape, rules: Rules) -> bool | None:
    """An equation is compared with an equation as a whole; where the gold answer is none, what stands after the last = is compared."""
    (found, called), (expected, wanted) = chained(a), chained(g)
    expected = forms(expected)[0] if "\\approx" in expected else expected
    if squeeze(expected) == "0" and _is_unsolved(found):
        return False
    if len(split(expected, "=")) > 1 or (wanted and (len(split(found, "=")) > 1 or _other_name(called, wanted))):
        return rules.value(answer, gold)
    said = forms(found)
    verdicts = [rules.value(form, expected) for form in said]
    if len(said) == 1 or set(verdicts) == {False}:
        return verdicts[0]
    agree = rules.rounded(*said)
    return agree if True in verdicts or agree is False else None


def _other_name(name: str, wanted: str) -> bool:
    """Whether two names are there, and not those of the same thing; y is another name of f(x)."""
    one_function = bool(_FUNCTION.fullmatch(name)) != bool(_FUNCTION.fullmatch(wanted)) and 1 in (len(name), len(wanted))
    return bool(name and wanted) and name != wanted and not one_function


def _is_unsolved(text: str) -> bool:
    """Whether a text is an equation in symbols and numbers that is written with 0 on its right: x - 5 = 0 says 5, but f(5) = 0 says 0."""
    *left, _ = split(text, "=")
    plain = _INSIDE.sub(" ", left[0]) if left else ""
    return bool(_OWN_SYMBOL.search(re.sub(r"\d", " ", plain))) and any(character.isdigit() for character in plain)


def chained(taken: Shape) -> tuple[str, str]:
    """What a value is, and its name. A chain of a name and values is its last one: x = 5 + 6 = 11 is x = 11, but x = y = 1 is none."""
    body, name = taken.parts[0], taken.name
    named = None if name else NAME.match(body)
    if named is None or not named[0].rstrip().endswith("="):
        return body, name
    *between, last = split(body[named.end() :], "=")
    if not between or not all(map(_is_value, (*between, last))):
        return body, name
    return last, squeeze(named[0]).rstrip("=")


def _is_value(text: str) -> bool:
    """Whether a link of a chain is a value: neither a name, nor one with words or the next name behind it (x = 1 y = 2)."""
    other = not text or _VARIABLE.fullmatch(text) or _NAME_BEHIND.search(text) or _PROSE.search(text)
    return not other and shape(text).kind == "value"


def _in_order(a: list[str], g: list[str], rules: Rules) -> bool | None:
    if len(a) != len(g):
        return False
    found = [same(x, y, rules) for x, y in zip(a, g, strict=True)]
    return False if False in found else None if None in found else True


def _in_any_order(a: list[str], g: list[str], rules: Rules) -> bool | None:
    if len(a) != len(g):
        return False
    said, wanted = [_counted(part) for part in a], [_counted(part) for part in g]
    if all(said) and all(wanted) and len(set(wanted)) == len(wanted) > 1:  # 5 boys and 6 girls are not 6 boys and 5 girls
        own = [a[said.index(words)] for words in wanted] if set(said) == set(wanted) else a
        return _in_order(own, g, rules)
    left, missing = _without(a, g), _without(g, a)
    if len(missing) > MAX_UNLIKE:
        return False
    unknown = False
    for expected in missing:
        verdicts = [same(found, expected, rules) for found in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif None in verdicts:
            unknown = True
        else:
            return False
    return None if unknown else True


def _counted(part: str) -> str:
    """The words behind a number, that say what it counts; empty for anything else."""
    match = _COUNTED.fullmatch(part)
    return " ".join(min(singulars(word), key=len) for word in _WORDS.findall(match[1].lower())) if match else ""


def _without(texts: list[str], others: list[str]) -> list[str]:
    """The texts that are not among the others, spaces aside."""
    there = Counter(map(squeeze, others))
    left = []
    for text in texts:
        key = squeeze(text)
        if there[key]:
            there[key] -= 1
        else:
            left.append(text)
    return left
