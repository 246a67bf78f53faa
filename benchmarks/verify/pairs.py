"""Responses with gold answers and the right verdict, made up: every pair is another one, so that nothing is remembered."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Pair(NamedTuple):
    """One response to grade."""

    kind: str
    response: str
    gold: str
    right: bool


SENTENCES = (
    "First we add the numbers, then we divide. So the answer is $\\boxed{@}$.",
    "Let $x$ be what is asked for. Then $2x+3y=7$, and after some algebra\n\n$$\\boxed{@}$$",
    "Step 1: we simplify.\n\nStep 2: we solve.\n\nTherefore, the final answer is \\(\\boxed{@}\\).",
)


def pairs(each: int, seed: int = 0) -> Iterator[Pair]:
    """Yield `each` pairs of every kind; a third of them are wrong."""
    drawn = random.Random(seed)
    for kind, make in KINDS.items():
        for _ in range(each):
            right, wrong, gold = make(drawn)
            good = drawn.random() < 2 / 3
            yield Pair(kind, drawn.choice(SENTENCES).replace("@", right if good else wrong), gold, good)


def _integer(drawn: random.Random) -> tuple[str, str, str]:
    n = drawn.randint(10, 10**7)
    return drawn.choice([f"{n}", f"{n:,}", f"{n}.0", f"x = {n}"]), f"{n + drawn.choice([1, -1, 10])}", f"{n}"


def _number(drawn: random.Random) -> tuple[str, str, str]:
    a, b, unit = (
        drawn.randint(1, 999),
        drawn.choice([8, 16, 20, 25, 40, 125]),
        drawn.choice(["", r"\text{ cm}", r" \mathrm{~m/s}", r"^\circ"]),
    )
    right = drawn.choice([rf"\frac{{{a}}}{{{b}}}", f"{a}/{b}", f"{a / b:.6f}".rstrip("0").rstrip("."), rf"\dfrac{{{2 * a}}}{{{2 * b}}}"])
    return right + unit, rf"\frac{{{a + 1}}}{{{b}}}{unit}", rf"\frac{{{a}}}{{{b}}}"


def _constant(drawn: random.Random) -> tuple[str, str, str]:
    a, b, c = drawn.randint(2, 40), drawn.randint(2, 99), drawn.choice([2, 3, 5, 6, 7])
    right, gold = drawn.choice(
        [
            (rf"{a}\sqrt{{{c}}}+{b}", rf"{b}+\sqrt{{{a * a * c}}}"),
            (rf"\frac{{{a}\pi}}{{{b}}}", rf"\frac{{{3 * a}}}{{{3 * b}}}\pi"),
            (rf"\frac{{{a}}}{{\sqrt{{{c}}}}}-{b}", rf"\frac{{{a}\sqrt{{{c}}}}}{{{c}}}-{b}"),
            (rf"\binom{{{a + 2}}}{{2}}+{b}", f"{(a + 2) * (a + 1) // 2 + b}"),
            (rf"{a}\ln {c}+{b}", rf"{b}+\ln {c}^{{{a}}}"),
            (rf"{c}^{{{a}}} \cdot {b}", rf"{b} \cdot {c}^{{{a - 1}}} \cdot {c}"),
        ]
    )
    return right, f"{right}+1", gold


def _expression(drawn: random.Random) -> tuple[str, str, str]:
    a, b, c = drawn.randint(2, 30), drawn.randint(2, 30), drawn.randint(2, 9)
    right, gold = drawn.choice(
        [
            (f"(x+{a})(x-{b})", f"x^2{a - b:+d}x-{a * b}"),
            (rf"\frac{{x+{a}}}{{x^2-{a * a}}}+{b}", rf"\frac{{1}}{{x-{a}}}+{b}"),
            (rf"{a}\sin^2 x+{a}\cos^2 x+{b}y", f"{b}y+{a}"),
            (f"2^{{n+{c}}}-{a}", f"{2**c} \\cdot 2^n-{a}"),
            (rf"{a}e^{{-{b}t}}\cos({c}t)", rf"{a}\cos({c}t)e^{{-{b}t}}"),
            (rf"\sqrt{{{a * a} G \rho r^{{2}}}}", rf"{a}r\sqrt{{G\rho}}"),
        ]
    )
    return right, f"{right}+1", gold


def _shape(drawn: random.Random) -> tuple[str, str, str]:
    a, b, c = drawn.randint(-30, 30), drawn.randint(31, 99), drawn.choice([2, 3, 5, 7])
    right, wrong, gold = drawn.choice(
        [
            (
                rf"\left({a}, \frac{{{2 * b}}}{{{2 * c}}}\right)",
                rf"\left({a}, \frac{{{2 * b + 1}}}{{{2 * c}}}\right)",
                rf"({a}, \frac{{{b}}}{{{c}}})",
            ),
            (f"{b}, {a}", f"{b}, {a + 1}", f"{a}, {b}"),
            (rf"{a} < x \le {b}", rf"{a} \le x \le {b}", f"({a}, {b}]"),
            (rf"\{{{a}, {b}\}}", rf"\{{{a}, {b + 1}\}}", rf"\{{{b}, {a}\}}"),
            (rf"(-\infty, {a}) \cup ({b}, \infty)", rf"(-\infty, {a}] \cup ({b}, \infty)", rf"(-\infty,{a})\cup({b},\infty)"),
            (
                rf"\begin{{pmatrix}} {a} \\ {b} \end{{pmatrix}}",
                rf"\begin{{pmatrix}} {b} \\ {a} \end{{pmatrix}}",
                rf"\begin{{bmatrix}} {a} \\ {b} \end{{bmatrix}}",
            ),
        ]
    )
    return right, wrong, gold


KINDS: dict[str, Callable[[random.Random], tuple[str, str, str]]] = {
    "integer": _integer,
    "decimal or fraction, unit": _number,
    "constant": _constant,
    "expression": _expression,
    "tuple, list, interval, matrix": _shape,
}
"""What makes (right answer, wrong answer, gold answer)."""
