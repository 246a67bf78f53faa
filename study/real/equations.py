"""Equations of word problems as the lines that a response writes: `( ( 41.0 - 37.0 ) / 2.0 )` is `41 - 37 = 4` and `4 / 2 = 2`."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable

OPERATORS: dict[type[ast.operator], tuple[str, Callable[[float, float], float]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}

_ANNOTATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")


def lines_of(equation: str) -> list[str]:
    """Return a line for each operation of an equation, innermost first.

    Args:
        equation: numbers, + - * / and brackets.
    Raises:
        ValueError - it is something else, or divides by zero.
    """
    lines: list[str] = []
    try:
        _value(ast.parse(equation.strip(), mode="eval").body, lines)
    except (SyntaxError, ZeroDivisionError) as error:
        raise ValueError(f"equation must have numbers, + - * / and brackets, got {equation!r}") from error
    return lines


def annotated_lines(solution: str) -> list[str]:
    """Return the lines of the calculations that GSM8K marks in a solution, as in `<<48/2=24>>`; what cannot be read is left out."""
    lines: list[str] = []
    for left, _ in _ANNOTATION.findall(solution):
        try:
            lines += lines_of(left)
        except ValueError:
            continue
    return lines


def result_of(lines: list[str]) -> str:
    """Return what the last line comes to."""
    return lines[-1].rpartition(" = ")[2] if lines else ""


def _value(node: ast.expr, lines: list[str]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _value(node.left, lines), _value(node.right, lines)
        sign, apply = OPERATORS[type(node.op)]
        value = apply(left, right)
        lines.append(f"{number_text(left)} {sign} {number_text(right)} = {number_text(value)}")
        return value
    raise SyntaxError(f"{type(node).__name__} is no number or operation")


def number_text(value: float) -> str:
    """Return a number as responses write it: without a point where it is whole."""
    return f"{value:.12g}"
