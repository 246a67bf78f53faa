"""Gold answers of every form, changed: what changes the value is never accepted, and what only rewrites it always is."""

from __future__ import annotations

import re

import pytest

from tests.train.grading import boxed

VALUES = [
    "7", "-13", "1024", "3.25", "10,080", "4.5e33", "2.7778e-6", r"1.2 \times 10^5", r"\frac{14}{3}", r"-\frac{35}{9}", "17/50", r"1\frac{4}{5}", r"0.1\overline{6}", r"45\%", r"90^\circ", r"\$18.90", r"5.4 \text{ cents}", r"864 \mbox{ inches}^2",
    r"3\sqrt{13}", r"\frac{3\sqrt{3}}{4}", r"1+2\sqrt{3}", r"\sqrt[3]{7}", r"\frac{20000}{\pi}", r"18+2\pi", r"\sqrt{2+\sqrt{3}}", "6 - 5i", r"1+\sqrt{3} i", r"\ln 2 + i\pi / 3", r"\log_2 3", r"2\log_3 2", r"\arcsin(10/13)", r"\cos 20^\circ", r"e^{3}",
    "2^{64}-1", "100!", "2^{2013}+3", r"50 \cdot \binom{100}{50}", r"\frac{3^{1008}-1}{3^{1009}}", r"\frac12[(1/3)^{100}+1]", r"\sum_{k=1}^{20} k^3", r"\lfloor 1000\pi \rfloor",
    "2k+2", "x^5 - x^4 + x^3 - x^2 + x - 1", "(a+5)(b+2)", r"\frac{11+9a}{20}", "3R^2", r"\cot x", r"\sqrt{4 \pi G \rho_{0} r_{0}^{2}}", r"\frac{a M^{1 / 3}}{G M^{2 / 3}+b}", r"x / 2-1 / 4+c e^{-2 x}", r"\frac{4 A}{3+3 i} e^{i t}", "2^{100n}", "n^{2020}", "3^n-2^n",
    r"\lfloor n^2/4\rfloor", r"|x-10|", r"\frac16+\frac{1}{3(-2)^{k}}", r"\binom{n+3}{3}", "n!+2", r"\sum_{k=1}^{n} k^5", r"\sum_{n=1}^{\infty}\frac{x^n}{n^3}", r"I(0) e^{-\frac{t}{R C}}",
]  # fmt: skip
OTHERS = [
    "(3,4)", "(6,31,-1)", r"\left( 3, \frac{\pi}{2} \right)", "(3,4]", r"(-\infty, 2) \cup (3, \infty)", r"x \in [-2,7]", "1,-2", "3, 5, 7", r"\{1\pm\sqrt{5},-2\}", r"1 \pm \sqrt{19}", "x=5", "y = 2x + 3", "5x - 7y + 11z + 4 = 0", r"\frac{d x}{d t}=3k x-a",
    r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}", r"\begin{pmatrix} -1 & 7 \\ 6 & -1 \end{pmatrix}", "52_8", "4210_{5}", "11:21", r"\mathbb{R}\setminus\{3\}", "x>3", r"2 \le x < 5", "E_{1},E_{2}",
]  # fmt: skip
CHANGES = [
    "@+1", "1+@", "@-1", "(@)+10^{-25}", "(@)(1+10^{-30})", "2(@)", "-(@)", r"\frac{@}{2}", "(@)^2", r"@ \cdot 3", "@, 31337", r"@ \text{ or } 31337", r"\{@, 31337\}", "@ = 31337", r"@ \approx 31337", r"31337 \approx @", r"@ \text{ wrong}", r"\text{not } @",
    r"\ne @", r"> @", r"\le @", "@ : 2", "@ y", r"@ \text{ million}", "(@, @)", "[0, @]", "@ and a half", "twice @", r"@ \pm 1", "f(@)", r"\overline{@}", "x \\ge @",
]  # fmt: skip
KEPT = [
    "@", " @ ", "(@)+0", "1(@)", r"\frac{2(@)}{2}", r"(@)\cdot 1", r"\left(@\right)+1-1", "x_0 = @", r"\text{Answer: }@", r"\displaystyle @", "@.", r"$@$", r"\boxed{@}", "{@}",
]  # fmt: skip
EXACT_FORM = re.compile(r"\\text|\\mbox|%|\\\$|\^\\circ$")


@pytest.mark.parametrize("gold", VALUES)
def test_a_changed_value_is_never_accepted(gold: str) -> None:
    outcomes = {change: boxed(change.replace("@", gold), gold) for change in CHANGES}
    assert [change for change, found in outcomes.items() if found not in ("wrong", "no_answer")] == []


@pytest.mark.parametrize("gold", VALUES + OTHERS)
def test_no_digit_may_change(gold: str) -> None:
    changed = [f"{gold[: digit.start()]}{(int(digit[0]) + 1) % 10}{gold[digit.end() :]}" for digit in re.finditer(r"\d", gold)]
    accepted = [answer for answer in changed if boxed(answer, gold) == "correct"]
    assert not accepted and (changed or gold == r"\cot x")


@pytest.mark.parametrize("gold", VALUES)
def test_a_rewritten_value_is_accepted(gold: str) -> None:
    forms = [form for form in KEPT if not (EXACT_FORM.search(gold) and re.search(r"[0-9]", form))]
    refused = [form for form in forms if boxed(form.replace("@", gold), gold) != "correct"]
    assert not refused


@pytest.mark.parametrize("gold", VALUES + OTHERS)
def test_a_gold_answer_is_its_own_answer(gold: str) -> None:
    assert boxed(gold, gold) == boxed(gold.replace(" ", ""), gold) == boxed(gold.replace("frac", "dfrac"), gold) == "correct"
