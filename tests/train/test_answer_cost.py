"""What an answer may cost: hostile ones are refused before they cost anything, and broken ones are read or refused, but break nothing."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator

import pytest

from aer_train.verify.symbolic import equal
from tests.train.grading import boxed
from tests.train.test_answer_changes import OTHERS, VALUES

SECONDS = 0.5
"""Of the processor, for several comparisons: a tenth of the default deadline for one."""


@pytest.fixture(autouse=True, scope="module")
def others_are_not_collected() -> Iterator[None]:
    """What other tests have left in the process is not looked through while these are timed: that alone has taken half a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


HOSTILE = {
    "factorials of factorials": "((9!)!)!", "hidden factorials": "(10^{10})!", "many factorials": "9" + "!!" * 40, "a hidden tower": "7^{(7^{(7^{7})})}", "a tower": "9^{9^{9^9}}", "a tower of brackets": "((9^9)^{9^9})^{9^9}",
    "a tower with roots": r"\sqrt{9^{9^{9^9}}}", "a tower below": "9^{-9^{9^9}}", "a long power": "3^{" + "9" * 200 + "}", "a long root": r"\sqrt[99999999999]{2}", "a slow power": "1.0000001^{10^{15}}", "powers of powers": r"((2^{999})^{999})^{999}",
    "a tower of fractions": r"(\frac{7}{3})^{(\frac{7}{3})^{(\frac73)^{99}}}", "a large binomial": r"\binom{99999999}{4999999}", "a binomial of binomials": r"\binom{\binom{99}{49}}{\binom{40}{20}}", "fractions": r"\frac{1}{1+" * 24 + "7" + "}" * 24,
    "exponentials": "e^{" * 20 + "7" + "}" * 20, "large exponentials": "e^{e^{e^{e^9}}}", "logarithms": r"\log(" * 40 + "7" + ")" * 40, "sines": r"\sin(" * 40 + "7" + ")" * 40, "tangents": r"\tan(" * 50 + "7" + ")" * 50, "roots": r"\sqrt{" * 45 + "7" + "}" * 45,
    "bars": "|" * 100 + "7" + "|" * 100, "brackets": "(" * 140 + "7" + ")" * 140, "braces": "{" * 140 + "7" + "}" * 140, "lists": "(1," * 60 + "7" + ")" * 60, "a large angle": r"\sin(10^{10^{9}})", "a wide angle": r"\sin(10^{300})", "a sum": r"\sum_{k=1}^{10^{12}} k",
    "sums of sums": r"\sum_{k=1}^{1000}" * 4 + "k", "a sum of powers": r"\sum_{k=1}^{2000} k^{2000}", "a product": r"\prod_{k=1}^{2000} k^{99}", "a slow series": r"\sum_{n=1}^{\infty} \frac{1}{n \ln(n+1)^2}", "an oscillating integral": r"\int_0^{\infty} \sin(x^{x^x}) dx",
    "integrals": r"\int_0^1 " * 12 + "7" + " dx" * 12, "a limit": r"\lim_{n\to\infty} n^{n^n}", "a gamma function": "(10^{9}+\\frac13)!", "the golden ratio": r"1+\frac{1}{" * 30 + "7" + "}" * 30, "minus signs": "-" * 280 + "7", "primes": "7" + "'" * 280,
    "thousands": "1" + ",111" * 70, "commas": "1," * 140, "choices": "(C) " * 60, "units": "5" + " cm" * 90, "plus minus": r"\pm 1" * 50, "equals signs": "7=" * 140, "less signs": "7<" * 140, "unions": r"(1,2)\cup" * 30 + "(3,4)", "approximations": r"\sqrt2 \approx " * 25,
    "a remainder": r"7^{7^{7^7}} \bmod 10", "a large floor": r"\lfloor 10^{10^{10}} \pi \rfloor", "gcd": r"\gcd(10^{10^8}, 6)", "double factorial": "(10^9)!!", "infinity": r"\infty^{\infty}", "a matrix": r"\begin{pmatrix}" + "9^{9^{9^9}} &" * 15 + r"7\end{pmatrix}",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "wrap, gold", [("@", "42"), ("@+x", "x+42"), ("x^{@}", "x^{42}"), (r"\frac{@}{@}+y", "y+41"), (r"\sqrt2+@", r"\sqrt2+42")]
)
def test_a_hostile_answer_is_refused_at_once(name: str, wrap: str, gold: str) -> None:
    answer = wrap.replace("@", HOSTILE[name])
    start = time.process_time()
    assert boxed(answer, gold) != "correct"
    assert equal(answer, gold) != "correct" and equal(gold, answer) != "correct"
    assert time.process_time() - start < SECONDS


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_gold_answer_is_told_at_once(name: str) -> None:
    start = time.process_time()
    assert boxed("42", HOSTILE[name]) in ("wrong", "gold_unparseable") and boxed(r"\sqrt{3}", HOSTILE[name]) in (
        "wrong",
        "gold_unparseable",
    )
    assert time.process_time() - start < SECONDS


_PIECES = r"""
{ } ( ) [ ] ^ _ | ! ' = < > , : & % . - + / * \\ \frac \sqrt \sin \log \sum_{k=1}^{n} \prod \int_0^1 x n i e 0 9 10^{9} \pi \le \ne \cup \setminus \pm
\text{cm} ^\circ \infty \lfloor \rfloor \begin{pmatrix} \end{pmatrix} \max \gcd \bmod \approx \in \mathbb{R} \choose
"""
PIECES = _PIECES.split()


@pytest.mark.parametrize("seed", range(12))
def test_broken_answers_break_nothing(seed: int) -> None:
    drawn = random.Random(seed)
    start = time.process_time()
    for _ in range(60):
        text, gold = drawn.choice(VALUES + OTHERS), drawn.choice(VALUES + OTHERS)
        for _ in range(drawn.randint(1, 4)):
            place, end = drawn.randint(0, len(text)), drawn.randint(1, 4)
            text = (
                text[:place] + drawn.choice(["", *drawn.sample(PIECES, 3), drawn.choice(VALUES)]) + text[place + drawn.choice([0, end]) :]
            )
        for answer, expected in ((text, gold), (gold, text)):
            assert boxed(answer, expected) in ("correct", "wrong", "no_answer", "gold_unparseable")
            assert equal(answer, expected) in ("correct", "wrong", "gold_unparseable")
    assert time.process_time() - start < 20 * SECONDS
