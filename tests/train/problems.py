"""Problems in the form of the benchmarks, written for the tests: how their rows, solutions and gold answers look, kind by kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORD_PROBLEMS = [
    # (problem, solution), as in GSM8K
    ("Nora’s hens lay 14 eggs a day. She eats 2 and sells the rest for $3 each. How many dollars does she earn a day?",
     "Nora sells 14 - 2 = <<14-2=12>>12 eggs a day.\nShe earns 12 * 3 = $<<12*3=36>>36 a day.\n#### 36"),
    ("A rope of 40 m is cut into pieces of 2.5 m. How many pieces are there?", "There are 40 / 2.5 = <<40/2.5=16>>16 pieces.\n#### 16"),
    ("Omar buys a flat for 150,000 and pays 30,000 for repairs, which raise its value by 80% of the price. What does he gain, in euros?",
     "The value rises by .8 * 150000 = <<.8*150000=120000>>120,000.\nThe flat is worth 150,000 + 120,000 = <<150000+120000=270000>>270,000.\n"
     "He paid 150,000 + 30,000 = <<150000+30000=180000>>180,000.\nHe gains 270,000 - 180,000 = <<270000-180000=90000>>90,000.\n#### 90,000"),
    ("It is 4 degrees at noon, and it gets 3 degrees colder in each of the next 5 hours. How many degrees is it then?",
     "It gets 3 * 5 = <<3*5=15>>15 degrees colder.\nThen it is 4 - 15 = <<4-15=-11>>-11 degrees.\n#### -11"),
    ("Two trains leave at the same time. One goes 60 km/h for 2 hours, then stops for half an hour, then goes 80 km/h for 3 hours; the other "
     "goes 55 km/h, without a stop, until the first has arrived. The road between the towns is closed, so that both take the long way, which "
     "has two bridges and a tunnel. The first train has 6 coaches and the second 9, of 48 seats each. How many kilometres farther does the "
     "first train get?",
     "The first goes 60 * 2 + 80 * 3 = <<60*2+80*3=360>>360 km.\nThat takes 2 + .5 + 3 = <<2+.5+3=5.5>>5.5 hours.\n"
     "The second goes 55 * 5.5 = <<55*5.5=302.5>>302.5 km.\nThe first gets 360 - 302.5 = <<360-302.5=57.5>>57.5 km farther.\n#### 57.5"),
    ("Lea has 3 boxes of 12 pencils and gives away 25%. How many are left?", "She has 3 * 12 = <<3*12=36>>36.\n36 * .75 = <<36*.75=27>>27 are left.\n#### 27"),
]  # fmt: skip

GOLD_ANSWERS: dict[str, list[Any]] = {
    "gsm8k": [solution for _, solution in WORD_PROBLEMS] + ["18", "57500", "-3", "1,250"],
    "aime24": ["204", "025", "007", "960", "73"],
    "aime25": [70, 588, 16, 0],
    "amc23": [27.0, "36", -1.0, "3159", "1"],
    "math500": [
        "7", "-43", "20,\\!160", "13,\\! 333,\\! 333,\\! 300", "2.25", ".0000481", "-0.7", "\\frac{17}{4}", "\\frac53", "\\frac 47", "\\frac8{21}", "\\dfrac{19}{40}", "-\\frac{37}{8}",
        "2\\frac{3}{7}", "149 \\frac{1}{2}", "\\frac{2011}{2}", "5\\sqrt{17}", "13\\sqrt3", "60 \\sqrt{3}", "\\frac{5\\sqrt{2}}{4}", "-\\sqrt{5}", "9 \\sqrt{7} + 9",
        "\\pi", "144 \\pi", "-\\frac{\\pi}{8}", "\\frac{30000}{\\pi}", "16+3\\pi", "8 - 3i", "1+152i", "80^\\circ", "43_7", "3120_{4}", "2, 5, 11", "1 \\pm \\sqrt{23}",
        "5 \\pm 3 \\sqrt{2}", "\\{1\\pm\\sqrt{7},-3\\}", "x=6", "a - b", "3k+2", "5R^2", "12x - 70", "4r^2-6r-15", "x^6 - x^5 + x^4 - x^2 + 1", "(a+3)(b+7)", "\\frac{13+7a}{30}", "\\tan x",
        "y = 3x + 5", "4x - 3y + 9z + 2 = 0", "(-5,4)", "(2,-15,-3,41)", "\\left( 5, \\frac{\\pi}{3} \\right)", "\\left( \\frac{5}{2}, -17 \\right)", "(4,7]", "(6,\\infty)", "(-\\infty, 8]",
        "(0,7) \\cup (7,25)", "(-\\infty, 1) \\cup (4, \\infty)", "\\left(\\frac{2}{5},\\frac{7}{3}\\right]", "\\left[ \\frac{\\pi^2}{6}, \\frac{7 \\pi^2}{4} \\right]", "x \\in [-3,8]",
        "\\begin{pmatrix} -2/3 \\\\ 1/3 \\\\ 7/3 \\end{pmatrix}", "\\begin{pmatrix} -3 & 0 \\\\ 0 & -2 \\end{pmatrix}", "\\text{Nora}", "\\text{west}", "\\text{parabola}", "\\text{odd}", "\\text{(D)}",
        "\\$41,\\!275", "\\$17.60", "\\frac{250}7\\text{ degrees}", "6.3 \\text{ cents}", "726 \\mbox{ inches}^2", "18\\mbox{ cm}^2",
    ],
    "minerva": [
        "1.7", "3.6e33", "3e8", "1e-6", "1.28e-10", "4.72e2", "31.410", "+3", "-0.625", "0.20", "-2./3", "np.arcsin(9/14)", "\\arcsin{1.4 \\sin{\\theta_v}}", "\\sqrt{6 \\pi G \\rho_{1} r_{1}^{2}}",
        "\\frac{3 \\pi c^{2} R^{2}}{\\lambda^{4}\\left[e^{h c /(\\lambda k T)}-1\\right] b^{2}}", "\\frac{b M^{2 / 3}}{G M^{1 / 3}+a}", "\\left[P_{1}^{3 / 5}-\\frac{3}{5} g K^{-2 / 5} z\\right]^{5 / 3}",
        "\\frac{v_{1}}{r_{1}} \\frac{1}{\\left(1+r / r_{1}\\right)^{5 / 2}}", "J(0)", "J(0) e^{-\\frac{t}{L C}}", "z^{\\prime}+q z-q x(t)=0", "\\frac{d y}{d t}=b y-c", "k \\frac{d v}{d t}+c v=g",
        "\\frac{dM}{dt}=\\frac{10^{4} L_{\\odot}}{0.005 c^{2} M_{\\odot}^{5}} M^{5}", "y_{0} \\cos (\\omega t)+$ $\\dot{y}_{0} \\sin (\\omega t) / \\omega", "2+\\sqrt{5} i", "\\ln 3 + i\\pi / 4",
        "\\frac{1}{3a}(\\exp{a*t} - \\exp{-a*t})", "\\frac{\\cos (3 t)}{24}+C_{1} e^{t}+C_{2} e^{-t}+C_{3} \\cos (t)+C_{4} \\sin (t)", "c x^{-3}-\\frac{\\cos (4 x)}{4 x^{3}}", "3.3 \\tau", "-\\tau \\ln \\epsilon",
        "(2 - 5e^{-3t} + 3e^{-4t}) u(t)", "a \\delta(t)+2-e^{-b t}", "\\frac{2}{s}-\\frac{2}{s} e^{-s T}", "\\frac{s+\\rho}{(s+\\rho)^{2}+\\omega_{n}^{2}}", "\\frac{d^{2} v_{a}}{d t^{2}}+\\frac{v_{a}}{R C}=\\frac{v_{b}}{R C}",
        "\\lambda_{\\text {blue}} / \\sqrt{3}", "\\frac{1}{\\sqrt{3}}c", "m_{n} c^{2}\\left(\\gamma^{2}+1\\right) \\cos ^{2} \\theta", "-\\frac{1}{3} Y^{-\\frac{1}{3}}", "\\frac{L-2}{K}", "MC=LRAC", "X_{s}=135-2.25 P",
        "\\beta", "8.4 Z", "\\frac{29}{4} m", "\\frac{1}{4} E_{1}+\\frac{3}{4} E_{2}", "F_{1},F_{2}", "\\hbar \\omega(n+1 / 2)-\\frac{B_{0}^{2} e^{2}}{4 m \\omega^{2}}",
    ],
    "olympiadbench": [["$\\frac{1}{2}$"], ["4"], ["$2^{1009}$"], ["$(1,2)$"], ["$n(n+1)$"]],
}  # fmt: skip
"""By suite; every kind of answer that its gold column holds, in the types in which it holds them."""


def row(name: str, number: int) -> dict[str, Any]:
    """A row of a suite's local file; no two have the same problem."""
    problem, golds = WORD_PROBLEMS[number % len(WORD_PROBLEMS)][0], GOLD_ANSWERS[name]
    return {"id": f"{name}/{number}", "problem": f"({number}) {problem}", "answer": golds[number % len(golds)], "source": name}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
