"""Values: what is equal, and what differs by a little, far away, or at whole numbers only."""

from __future__ import annotations

import pytest

from tests.train.grading import boxed

EQUAL = [
    # powers, factorials, roots, logarithms
    (r"2^6 3^5", "15552"), (r"2^{6}3^{5}", r"2^6 \cdot 3^5"), (r"7^\frac12", r"\sqrt7"), (r"2^{10}", "1024"), ("2^10", "1024"), ("e^{e}", "e^e"), (r"\sqrt[3]8", "2"),
    (r"\log_2 8", "3"), (r"\log_{2}(8)", "3"), (r"\log_28", "3"), (r"\log_{4} 16", "2"), (r"1+\log_2 3", r"\log_2 6"), (r"\log_{2}{3}", r"\log _{2} 3"), (r"\lg 100", "2"), (r"\log_10 1000", "3"),
    (r"\frac{\ln 8}{\ln 2}", "3"), (r"\sqrt[3]{-8}", "-2"), (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2"), ("((3!)!)!/((3!)!)!", "1"), ("5!!", "15"), (r"\frac{10!}{3!\,7!}", r"\binom{10}{3}"),
    # juxtaposition is a product
    (r"2\binom{5}{2}", "20"), (r"5\binom{3}{1}", "15"), (r"2(\frac13)", r"\frac23"), ("100(1/4)", "25"), ("(2) 3", "6"), ("(3)(4)", "12"), ("3(4)", "12"), (r"50 \binom{100}{50}", r"50 \cdot \binom{100}{50}"),
    (r"2\frac{\sqrt3}{2}", r"\sqrt3"), (r"\frac12 \frac13", r"\frac16"), (r"2\frac{3}{2}", "3"), (r"5\frac{0}{3}", "0"), (r"1\frac12 \pi", r"\frac{3\pi}{2}"), (r"2\frac{1}{x}", r"\frac2x"),
    # functions
    (r"\sin^2(2)", r"\sin^{2} 2"), (r"\tan^{-1}(2)", r"\arctan 2"), (r"\sin 30^\circ", r"\frac12"), (r"\tan 45^\circ", "1"), (r"2\cos 20^\circ", r"2\sin 70^\circ"), (r"\cos(90^\circ - x)", r"\cos(90^\circ-x)"),
    (r"\sin 2x", r"2\sin x \cos x"), ("sin x", r"\sin x"), ("abc", "cab"), ("ab + cd", "dc+ba"), ("x 0", "0"), (r"\sin^2 x+\cos^2 x", "1"), ("sin(2x)", r"\sin 2x"), (r"\exp(x)", "e^x"), (r"\max(2, 3)", "3"), (r"\gcd(12,18)", "6"), (r"\operatorname{lcm}(4,6)", "12"), (r"17 \bmod 5", "2"),
    (r"\lfloor -2.5 \rfloor", "-3"), (r"\lceil \pi \rceil", "4"), (r"|3-\pi|", r"\pi-3"), (r"||x|-1|", r"|1-|x||"),
    # sums, products and integrals
    (r"\sum_{k=1}^{10} k", "55"), (r"\prod_{k=1}^{5} k", "120"), (r"\sum_{k=0}^{n} k", r"\frac{n(n+1)}{2}"), (r"\sum_{n=0}^{\infty} \frac{1}{2^n}", "2"), (r"\sum_{n=0}^{\infty}(-1)^n x^n", r"\sum_{n=0}^{\infty} (-x)^n"),
    (r"\sum_{n=0}^{\infty} \frac{1}{n!}", "e"), (r"2\sum_{n=1}^{\infty}\frac{\sin nx}{n^2}", r"\sum_{n=1}^{\infty}\frac{2}{n^2}\sin(nx)"), (r"\int_0^1 x^2 dx", r"\int_0^1 t^2 dt"),
    # complex numbers
    ("(2-i)i", "1+2i"), (r"e^{i\pi}", "-1"), (r"\frac{1+i}{1-i}", "i"), (r"2e^{i\pi/3}", r"1+i\sqrt3"), ("|3+4i|", "5"), ("i^{2}", "-1"), (r"\sqrt{-4}", "2i"),
    # with symbols
    (r"\frac{1+2(-\frac12)^k}{6}", r"\frac16+\frac{1}{3(-2)^{k}}"), ("(-1)^{n+1}", "(-1)^{n-1}"), ("(-1)^n", r"\cos(n\pi)+(-1)^n-\cos(\pi n)"), (r"\frac{(2n)!}{2^n n!}", "(2n-1)!!"), (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
    (r"\lfloor \frac{n^2}{4} \rfloor", r"\lfloor \frac n2 \rfloor \lceil \frac n2 \rceil"), (r"\lfloor n/2 \rfloor", r"\frac{2n-1+(-1)^n}{4}"), (r"\lfloor \frac n2+\frac14 \rfloor", r"\lfloor n/2 \rfloor"), (r"\sqrt{x^2}", "|x|"), ("|x-10|", "|10-x|"), (r"\ln(x^2-1)", r"\ln(x-1)+\ln(x+1)"),
    (r"\sqrt{(x-100)(200-x)}", r"\sqrt{-x^2+300x-20000}"), (r"\sqrt{1-x^2}", r"\sqrt{(1-x)(1+x)}"), (r"\arcsin x+\arccos x", r"\frac{\pi}{2}"), (r"\frac{dy}{dx}=2x", "dy/dx = 2x"), ("x2", "2x"), ("a**2", "a^2"),
    ("8,094 - 1,649", "6445"), ("x = 1,200 + 34", "1234"), ("12,345,678 + 1", "12345679"), ("1/2,300", r"\frac12, 300"), ("(1,200 + x, 3)", "(1,200+x,3)"),
    ("v^2_0", "v_0^2"), (r"x^2_1+x^{2}_{2}", "x_1^2+x_2^2"), (r"(\frac{\sqrt{2}v^2_0}{g},1)", r"(\frac{\sqrt2 v_0^2}{g},1)"), (r"\lambda^2_1", r"\lambda_1^2"), (r"\int^2_1 x dx", r"\int_1^2 x dx"),
    ("2^{100n}", "4^{50n}"), ("0", "(x+1)^2-x^2-2x-1"), (r"\Gamma_0 f(x+1)", r"f(1+x)\Gamma_0"), ("10^{10^{10}}", "10^{10^{10}}"), (r"3 \pmod 5", r"8 \pmod{5}"), (r"x \equiv 3 \pmod 5", r"x\equiv 3\pmod{5}"),
]  # fmt: skip
DIFFERENT = [
    # (answer, gold answer, how they are alike)
    ("2^{64}", "2^{64}-1", "19 digits"), ("100!", "100!+1", "157 digits"), ("2^{2013}", "2^{2013}-6036", "602 digits"), ("1", "1-(5/6)^{300}", "23 digits"), (r"\frac23", r"\frac{2^{2009}-1}{3 \cdot 2^{2008}-1}", "600 digits"),
    (r"\frac{1}{1+10^{-25}}", "1", "25 digits"), ("x", "x + 10^{-25}", "25 digits"), ("2^{100n}+1", "2^{100n}", "large powers"), ("n^{2020}+n", "n^{2020}", "large powers"), (r"\tfrac12", r"\frac12[(1/3)^{100}+1]", "47 digits"),
    (r"\frac13", r"\frac{3^{1008}-1}{3^{1009}}", "480 digits"), (r"\sqrt2", r"\sqrt2+10^{-2000}", "2000 digits"), (r"\sqrt2", r"\sqrt2+(\sqrt3-\sqrt2)^{500}", "248 digits"), (r"\tanh(100)", "1", "86 digits"), (r"\operatorname{sech}(100\pi)", "0", "136 digits"), (r"\operatorname{arccot}(10^{20}\pi)", "0", "20 digits"), ("f(x+10^{-70})", "f(x)", "70 digits"), (r"\cos(10^{-50})", "1", "100 digits"),
    (r"1-(1-\cos(10^{-50}))^{10}", "1", "2000 digits"), (r"e^{\pi\sqrt{163}}", "262537412640768744", "30 digits"), (r"\frac{\sin x}{x}+10^{-60}", r"\frac{\sin x}{x}", "60 digits"), (r"\sin(10^{-30}\pi)", "0", "29 digits"), ("2^{10000}+1", "2^{10000}", "3000 digits"),
    (r"\lfloor n/5\rfloor", r"\lfloor n/7\rfloor", "0 at small numbers"), (r"\lfloor n^2/4\rfloor", r"\lfloor n^2/3\rfloor", "at 1 and 0"), (r"2c\lfloor c^2/4\rfloor", r"c\lfloor c^2/4\rfloor", "0 = 0"), (r"\max(x,10)", "10", "at small numbers"),
    ("|x-10|", "10-x", "at small numbers"), (r"\sqrt{(n-100)^2}", "100-n", "at small numbers"), (r"|x+10^9|", "x+10^9", "but at large negative numbers"), (r"\lfloor x \rfloor", "x", "at whole numbers"), (r"\lfloor x/10^{9}\rfloor", "0", "below 10^9"),
    (r"n \bmod 1000", "n", "below 1000"), (r"\gcd(n, 30)", r"\gcd(n, 15)", "at odd numbers"), ("|x|", "x", "at positive numbers"), (r"\min(n, 50)", "n", "below 50"),
    (r"x+\lfloor x \cdot 10^{-20}\rfloor", "x", "below 10^20"), (r"x+\max(0,x-10^{400})", "x", "below 10^400"), (r"x+\lfloor\frac{1}{1+(x-37)^2}\rfloor", "x", "but at 37"), (r"x+\lfloor\frac{1}{1+|x+\frac{7}{3}|}\rfloor", "x", "but at -7/3"),
    (r"2\binom{5}{2}", "12", "a mixed number"), (r"5\frac{0}{3}", "5", "a mixed number"), (r"5\binom{3}{1}", "8", "a mixed number"), (r"2(\frac13)", r"\frac73", "a mixed number"), ("100(1/4)", "100.25", "a mixed number"), ("(2) 3", "5", "a mixed number"), ("(1) 20 cm", "21 cm", "a mixed number"),
    ("1,100 - 1", "1, 99", "a list"), ("3 4", "12", "numbers side by side"), ("3 4", "34", "numbers side by side"), (r"2^6 3^5", "2^{63^5}", "a space"), (r"2^{6}3^{5}", "2^{63^5}", "braces"), (r"3\cdot\frac12", r"\frac72", "a product"), (r"\log_2 8", r"\log 28", "a base"),
    ("52_x", "52", "a letter as base"), ("12_b", "12", "a letter as base"), ("5_a", "5", "a letter as base"), ("52_8", "52", "a base"), ("52_8", "42", "a base"), ("-222_3", "-221_3", "a base"), ("59_8", "59", "no digit of its base"),
    ("I(0)", "0", "a function"), ("f(x)+f(y)", "f(x+y)", "a function"), (r"\frac{dM}{dt}", r"\frac{M}{t}", "a derivative"), (r"\sin^{-1}(x)", r"\frac{1}{\sin x}", "an inverse"), (r"\int_0^1 x^2 dx", r"\int_0^1 x^3 dx", "an integral"),
    (r"\int_0^1 x^2 dx", r"\int_0^2 x^2 dx", "an integral"), (r"\sum_{n=0}^{\infty} x^n", r"\sum_{n=0}^{\infty}(-1)^n x^n", "a series"), (r"\prod_{n=1}^{\infty}(1-x^n)", r"\prod_{n=1}^{\infty}(1+x^n)", "a product"), (r"30^\circ", r"\frac{\pi}{6}", "an angle"),
    (r"\sin 30", r"\frac12", "an angle"), (r"\ln 2", r"\log 2", "a base"), ("3 \\pmod 5", "3", "a class"), (r"2\infty", r"\infty", "infinity"), (r"\infty+1", r"\infty", "infinity"), ("2^{1000000}+1", "2^{1000000}", "too large to know"),
    (r"\frac{1}{0}", r"\frac{2}{0}", "no numbers"), (r"2+\sum_{n=0}^{\infty} \max(0,n-50)", "2", "at the first terms"), (r"\sqrt{x-1}", r"\sqrt{1-x}", "the sign"), ("0.333", r"\frac13", "rounded"), ("1.41421356237", r"\sqrt2", "rounded"), ("1.414...", r"\sqrt2", "rounded"),
]  # fmt: skip


@pytest.mark.parametrize("answer, gold", EQUAL, ids=[f"{a} = {g}" for a, g in EQUAL])
def test_equal_values(answer: str, gold: str) -> None:
    assert boxed(answer, gold) == boxed(gold, answer) == "correct"


@pytest.mark.parametrize("answer, gold, alike", DIFFERENT, ids=[f"{a} / {g} ({why})" for a, g, why in DIFFERENT])
def test_different_values(answer: str, gold: str, alike: str) -> None:
    assert boxed(answer, gold) != "correct" and boxed(gold, answer) != "correct"
