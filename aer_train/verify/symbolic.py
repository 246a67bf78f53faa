"""Symbolic equality of two answers, by math-verify. Called in the pool's processes only: it may hang, and it may eat memory.

math-verify is asked about single values and relations only, so that its leniencies (a set for an interval, a number found somewhere in
the text, six decimals for an exact value) do not arise: `shape` compares the shape, and decimals are read as fractions.
"""

from __future__ import annotations

import logging
import random
import re

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy.core.function import AppliedUndef

from aer_train.verify.compare import exactly, is_text, without_unit
from aer_train.verify.latex import clean
from aer_train.verify.quantity import in_base, quantity
from aer_train.verify.shape import same_shape, shape

logging.disable(logging.WARNING)  # math-verify warns at every call that its own timeouts are off

POINTS = 4
"""Random points at which two expressions must agree."""

DIGITS = 30
"""Digits to which they are evaluated; they must agree in 20."""

_NORMAL = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False)
_READING = ConversionConfig(lowercase_symbols=False)
_TEXT = re.compile(r"\\text ?\{")
_ADJACENT_NUMBERS = re.compile(r"\d \d|\d_\d")
_SCIENTIFIC = re.compile(r"(?<![A-Za-z\\\d.])(\d+(?:\.\d*)?)[eE]([+-]?\d+)(?![A-Za-z\d])")
_REWRITES = [
    (re.compile(r"_\{ ?\\text ?\{ ?([A-Za-z]+) ?\} ?\}"), r"_{\1}"),  # names in subscripts
    (re.compile(r"_\{ ?\\([A-Za-z]+) ?\}"), r"_{\1}"),
    (re.compile(r"(?<![A-Za-z\\])E(?=_)"), r"\\mathcal{E}"),  # E alone is Euler's number to the parser
    (re.compile(r"\b(?:np|math|sympy)\.(?=[a-z])"), ""),
    (re.compile(r"(?<![\\A-Za-z])(arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt)(?=[ (])"), r"\\\1"),
    (re.compile(r"\\sqrt ?\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<=[\d)}]) ?\((?=-?[\d.]+\))"), r" \\cdot ("),  # the parser reads 3(4) as the mixed number 3 + 4
    (re.compile(r"(?<!\*)\*\*(?!\*)"), "^"),
    (re.compile(r"\*"), r"\\cdot "),
    (re.compile(r"(?<=\d)\.(?!\d)"), ""),
]
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")
_OPAQUE = (sympy.Derivative, AppliedUndef)
_SIGNED = (sympy.Abs, sympy.sign, sympy.Max, sympy.Min, sympy.Piecewise, sympy.floor, sympy.ceiling)


def equal(answer: str, gold: str) -> str:
    """Return correct, wrong or gold_unparseable. No timeouts of its own: the parent has the clock."""
    found, expected = clean(answer), clean(gold)
    if not all(_readable(part) for part in shape(expected).parts):
        return "gold_unparseable"
    return "correct" if same_shape(found, expected, _same_value) else "wrong"


def _readable(text: str) -> bool:
    return is_text(text) or bool(quantity(text) or in_base(text)) or _parsed(without_unit(text)[0], False) is not None


def _same_value(answer: str, gold: str) -> bool:
    known = exactly(answer, gold)
    if known is not None:
        return known
    is_complex = should_treat_as_complex(answer) or should_treat_as_complex(gold)
    found, expected = (_parsed(without_unit(text)[0].replace("%", ""), is_complex) for text in (answer, gold))
    if found is None or expected is None:
        return False
    if isinstance(found, sympy.Expr) and isinstance(expected, sympy.Expr):
        ratio = _ratio_at_points(found, expected)
        if ratio is not None:
            return ratio == 1
    if isinstance(found, sympy.Eq) and isinstance(expected, sympy.Eq):  # both sides times the same number
        return bool(_ratio_at_points(found.lhs - found.rhs, expected.lhs - expected.rhs))
    return verify(expected, found, timeout_seconds=None, float_rounding=DIGITS, numeric_precision=DIGITS)


def _parsed(text: str, is_complex: bool) -> sympy.Basic | None:
    """The expression that a cleaned text is, or None."""
    if _TEXT.search(_REWRITES[0][0].sub("", text)) or _ADJACENT_NUMBERS.search(text):
        return None
    text = _DECIMAL.sub(_fraction, _SCIENTIFIC.sub(r"{\1 \\cdot 10^{\2}}", text))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    try:
        text = normalize_latex(text, _NORMAL)
        return latex2sympy(text, is_real=not is_complex, convert_degrees=False, normalization_config=None, conversion_config=_READING)
    except RecursionError:
        raise
    except Exception:  # what cannot be read is data, not an error
        return None


def _fraction(match: re.Match[str]) -> str:
    """A decimal as an exact fraction: nothing is compared in floating point."""
    return rf"{{\frac{{{int(match[1] + match[2])}}}{{{10 ** len(match[2])}}}}}"


def _ratio_at_points(a: sympy.Expr, b: sympy.Expr) -> complex | None:
    """Return a / b if it is the same at random points: 1 for equal expressions, 0 where it differs, None when that cannot be told.

    Different expressions of an answer's size have no constant ratio at random points to 20 digits, and evaluation is fast where
    simplification hangs. The points are positive, as the quantities in formulas are, unless the sign is what an expression is about.
    """
    opaque = {part: sympy.Symbol(str(part)) for part in a.atoms(*_OPAQUE) | b.atoms(*_OPAQUE)}  # f(x) and dx/dt are names here
    a, b = a.xreplace(opaque), b.xreplace(opaque)
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    low = -4000 if a.has(*_SIGNED) or b.has(*_SIGNED) else 1
    found: list[sympy.Expr | int] = []
    for point in range(POINTS):
        drawn = random.Random(f"point {point}")
        values = {symbol: sympy.Rational(drawn.randint(low, 4000), 1009) for symbol in symbols}
        x, y = _evaluated(a, values), _evaluated(b, values)
        if x is not None and y is not None:
            found.append(1 if x == y == 0 else 0 if x == 0 or y == 0 else x / y)
    if not found:
        return None
    first = found[0]
    if any(abs(ratio - first) > sympy.Float("1e-20", DIGITS) * abs(first) for ratio in found):
        return 0
    return 1 if abs(first - 1) <= sympy.Float("1e-20", DIGITS) else complex(first)


def _evaluated(expression: sympy.Expr, values: dict[sympy.Basic, sympy.Rational]) -> sympy.Expr | None:
    """The number to 30 digits, exactly 0 where nothing is left of them, or None."""
    number = expression.evalf(DIGITS, subs=values)
    if not number.is_number or not number.is_finite:
        return None
    parts = [0 if getattr(part, "_prec", 0) == 1 else part for part in number.as_real_imag()]
    return parts[0] + sympy.I * parts[1]
