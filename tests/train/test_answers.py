"""What is right and what is wrong: tables of (response, gold answer, verdict), and the benchmarks' gold answers in the forms that models write."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest

from aer_train.data.columns import gold_answers
from aer_train.verify import Verifier
from aer_train.verify.equality import same_answer
from aer_train.verify.extract import extract, gold_answer
from aer_train.verify.latex import clean
from aer_train.verify.quantity import quantity
from tests.train.problems import GOLD_ANSWERS

EXTRACTED = [
    # (response, final answers, why)
    (r"so we get $\boxed{18}$. That is 3 * 6.", ["18"], "a box anywhere"),
    (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"], "nested braces"),
    (r"\boxed{\left\{1, 2\right\}}", [r"\left\{1, 2\right\}"], "escaped braces do not count"),
    (r"\fbox{7} and \boxed 7", ["7"], "other boxes"),
    (r"\boxed{\boxed{5}}", ["5"], "a box in a box"),
    ("\\boxed{\n5\n}", ["5"], "a box over lines"),
    (r"\boxed{41} or rather \boxed{42}", ["41", "42"], "both are kept, for the comparison to punish"),
    (r"\boxed{} and \boxed{\phantom{2}}, so \boxed{4}", ["4"], "boxes to be filled in"),
    (r"\boxed{42", [], "cut off"),
    (r"The answer is $\boxed{42", [], "cut off"),
    ("The box holds a box. " * 60 + r"\boxed{7}. " + "The box is a box. " * 60, ["7"], "a word problem about boxes"),
    (r"<think>\boxed{41}</think> So \boxed{42}.", ["42"], "thinking is not the answer"),
    (r"hm, \boxed{41}</think> So \boxed{42}.", ["42"], "the prompt opened the thinking"),
    (r"<think>so \boxed{42}", [], "never left its thinking"),
    (r"<think>so \boxed{42}</think> I do not know.", [], "thought, not said"),
    (r"<think>1</think> It is \boxed{2}. <think>or \boxed{3}", ["2"], "thinks again and never ends"),
    ("<think>1</think><answer> 42 </answer>", ["42"], "answer tags"),
    (r"<answer>\boxed{42}</answer>", ["42"], "a box in answer tags"),
    ("The answer is 42.", ["42"], "plain"),
    ("The final answer is: **42**", ["42"], "bold"),
    ("Final Answer: The final answer is $42$. I hope it is correct.", ["$42$"], "few-shot form"),
    ("**Answer:** $x^2$", ["$x^2$"], "label"),
    ("Work.\n\n**Final Answer**\n\n$$\n42\n$$", ["$$\n42\n$$"], "heading"),
    ("Work.\n\n# Answer\n\n42", ["42"], "heading"),
    ("First the answer is 41. No, the answer is 42", ["42"], "the last one counts"),
    ("The answer is that Janet makes $18 every day.", ["18"], "one number in the sentence"),
    ("Final Answer: The volume of $ABCD$ is 120.", ["120"], "what it says that something is"),
    ("The answer is Tuesday.", ["Tuesday"], "a word"),
    ("The answer is not 41.", [], "denied"),
    ("She has 9 * 2 = <<9*2=18>>18 dollars.\n#### 18", ["18"], "GSM8K"),
    ("#### 17\nNo.\n#### 18", ["18"], "the last one counts"),
    ("#### Step 2: add 5\n#### Conclusion\nWe are done.", [], "headings"),
    ("2+2 = 4\nA: 18", ["18"], "question and answer form"),
    ("42", ["42"], "nothing else"),
    ("x = 5", ["x = 5"], "nothing else"),
    ("Therefore, she makes $18 every day.", ["18"], "a conclusion with one number"),
    ("Therefore, she makes $18 from 9 eggs.", [], "a conclusion with two numbers"),
    ("So she has 18", [], "perhaps cut off"),
    ("6 * 3 = 18\n\n**18 dollars**", ["18 dollars"], "a bold last line"),
    ("Answer:\n\n- 18 eggs", ["18 eggs"], "a bullet is no minus"),
    ("Answer: -18", ["-18"], "a minus"),
    ("The answer is 42.<|im_end|>\n<|im_start|>user\nThe answer is 43.", ["42"], "the next turn is not part of it"),
    ("I think 42 and then 43", [], "no final answer"),
    ("", [], "nothing"),
]


@pytest.mark.parametrize("response, answers, why", EXTRACTED, ids=[why + " " + response[-20:] for response, _, why in EXTRACTED])
def test_where_the_answer_is(response: str, answers: list[str], why: str) -> None:
    assert extract(response) == answers


@pytest.mark.parametrize(
    "text, answer",
    [
        ("18", "18"),
        (" 18\n", "18"),
        ("9 * 2 = 18\n#### 18", "18"),
        ("so 18 dollars\nA: 18", "18"),
        (r"the answer is $\boxed{18}$", "18"),
        (r"$x = \boxed{1}$ or $x = \boxed{-2}$", "1, -2"),
        ("", ""),
    ],
)
def test_gold_answers_may_be_whole_solutions(text: str, answer: str) -> None:
    assert gold_answer(text) == answer


QUANTITIES = {
    "18": 18, "-18": -18, "+18": 18, "−18": -18, "- 18": -18, "007": 7, "18.": 18, "18.00": 18, ".5": "1/2", "-3.50": "-7/2",
    "1,234": 1234, "1{,}234": 1234, r"1\,234": 1234, r"1,\!234": 1234, "1 234 567": 1234567, "1,234.50": "2469/2", "12,34": None, "1,2345": None,
    r"\frac{1}{2}": "1/2", r"\dfrac12": "1/2", r"\tfrac{-1}{2}": "-1/2", r"-\frac{1}{-2}": "1/2", "1/3": "1/3", "-1./3": "-1/3", "1/0": None,
    r"1\frac{1}{2}": "3/2", "1 1/2": "3/2", r"-137 \frac{1}{2}": "-275/2", "½": "1/2", r"0.\overline{3}": "1/3", r"0.1\overline{6}": "1/6",
    r"1.2 \times 10^5": 120000, "4.5e3": 4500, r"10^{-3}": "1/1000", "6×10⁻²": "3/50", "1e999": None, "9" * 101: None,
    r"\$18.00": 18, "$18": 18, "18 dollars": 18, "18 eggs per day": 18, r"18\text{ m/s}": 18, r"18 \mathrm{~cm}^2": 18, r"\text{18}": 18, r"\mathbf{18}": 18,
    "(18)": 18, r"90^\circ": 90, "90°": 90, "5 million": 5000000, "2.5 thousand dollars": 2500, "seven": 7,
    "5x": None, "2k": None, "52_8": None, "18 or 19": None, "5 and a half": None, r"5 \text{ less than } 7": None, "５": 5, "x": None, "": None,
}  # fmt: skip


@pytest.mark.parametrize("text", QUANTITIES, ids=[text[:24] for text in QUANTITIES])
def test_quantities(text: str) -> None:
    found, expected = quantity(clean(text)), QUANTITIES[text]
    assert (None if found is None else found.value) == (None if expected is None else Fraction(expected))


SAME = [
    # (answer, gold answer): correct
    ("18", "18"), ("18.0", "18"), (r"18 \text{ dollars}", "18"), ("18", r"18 \text{ cm}"), (r"5\text{ cm}", r"5 \mathrm{~cm}"),
    (r"15\text{ square centimeters}", r"15\mbox{ cm}^2"), (r"864 \text{ in}^2", r"864 \mbox{ inches}^2"), ("5 m", "5"),
    (r"50\%", "50 percent"), (r"32348", r"\$32,\!348"), ("11111111100", r"11,\! 111,\! 111,\! 100"), ("x = 7", "7"), ("7", "x=7"), (r"x \approx 1.25", "1.25"),
    ("3x = 3 + 12 = 15", "15"), ("AB = 15", "15"), (r"\text{Area} = 15", "15"), (r"\frac{30}{2} = 15", "15"),
    ("p-q", "p - q"), (r"\dfrac{\sqrt3}{2}", r"\frac{\sqrt{3}}{2}"), ("3√13", r"3\sqrt{13}"), (r"12\pi\text{ cm}^3", r"12 \pi"), ("2π", r"2\pi"),
    (r"(3, \frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"), ("(2,12)∪(12,102)", r"(2,12) \cup (12,102)"), ("(-∞, 0]", r"(-\infty,0]"),
    (r"-2 \le x \le 7", r"x \in [-2,7]"), ("x > 3", r"(3,\infty)"), ("3 < x", "x>3"), ("x<2 or x>3", r"(-\infty, 2) \cup (3, \infty)"),
    ("-2, 1", "1,-2"), (r"x=1 \text{ or } x=-2", "1,-2"), (r"\{1, -2\}", "-2,1"), (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"), ("3, 5 and 7", "3, 5, 7"),
    (r"\begin{bmatrix} 1 \\[4pt] \frac{1}{2} \end{bmatrix}", r"\begin{pmatrix} 1 \\ 1/2 \end{pmatrix}"),
    ("52_8", "52_{8}"), (r"52_{\text{eight}}", "52_8"), (r"52 \text{ (base 8)}", "52_8"),
    ("C", r"\text{(C)}"), (r"\textbf{(C)}\ 42", "C"), (r"\textbf{(C)}\ 42", "42"), ("(C)", "C"),
    ("evelyn", r"\text{Evelyn}"), (r"\text{East}", "east"), ("4:30 PM", r"\text{4:30 p.m.}"),
    (r"\text{No}", "no"), ("No", "no"), ("Bob", r"\text{bob}"), (r"\text{The total is } 18", "18"), ("18 (dollars)", "18"), (r"\{x \mid x > 3\}", r"(3,\infty)"),
    ("f(x) = 2x+3", "y = 2x + 3"), ("2x+3", "y = 2x + 3"), (r"\\frac{1}{2}", r"\frac12"), ("E_2, E_1", "E_{1},E_{2}"),
]  # fmt: skip
DIFFERENT = [
    # (answer, gold answer, why): wrong
    ("19", "18", "off by one"), ("-18", "18", "sign"), ("18.5", "18", "value"), ("0.333", "1/3", "rounded"), (r"\frac13", "0.3333333333", "rounded"),
    (r"50\%", "50", "percent"), (r"50\%", "0.5", "percent"), ("50", r"50\%", "percent"), (r"2\pi\%", r"2\pi", "percent"), ("50 percent", "50", "percent"),
    (r"5\text{ cm}", r"5 \text{ m}", "unit"), (r"15\text{ cm}", r"15\mbox{ cm}^2", "unit"), ("5 million", "5", "scale"), ("5", "5 million", "scale"),
    ("5, 6", "5", "list that contains it"), ("5 or 6", "5", "list"), ("1, 2, 3, 4, 5, 6", "5", "list"), (r"\pm 5", "5", "two values"), ("5", "5, 6", "part of a list"),
    ("(1,2)", r"\{1,2\}", "tuple for set"), ("(1,2)", "1,2", "tuple for list"), ("(1,2]", "[1,2]", "bracket"), ("[1,2]", "(1,2)", "bracket"), (r"\{3,4\}", "(3,4]", "set for interval"),
    ("(2,1)", "(1,2)", "order in a tuple"), ("x < 5", "5", "inequality"), (r"x \le 5", "x < 5", "strictness"), (r"\ge 5", "5", "inequality"), (r"\ne 5", "5", "inequality"),
    ("52", "52_8", "base"), ("52_8", "52", "base"), ("52_9", "52_8", "base"), ("5:3", "5/3", "ratio"),
    ("D", r"\text{(C)}", "choice"), ("C or D", r"\text{(C)}", "two choices"), ("(C), (D)", "C", "two choices"), ("cat", r"\text{(C)}", "word"),
    (r"\text{red}", r"\text{blue}", "word"), (r"\text{not Evelyn}", r"\text{Evelyn}", "denied"), ("5", r"\text{blue}", "number for word"),
    ("5n", "5", "variable"), ("5 t", "5", "variable"), ("C e^x", "e^x", "variable, no choice"), (r"42 \text{ or maybe more}", "42", "hedge"), ("5x", "5", "variable"), ("2", "2k", "variable"), ("3", "3R^2", "variable"), ("5 6", "56", "two numbers"), ("12,34", "1234", "list"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "row for column"),
    (r"\text{Yes}", "no", "word"), ("yes", "no", "word"), (r"\text{The total is not } 18", "18", "denied"),
    ("y = 5", "y = 2x + 3", "equation"), ("(1,2)", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "tuple for matrix"),
]  # fmt: skip
SYMBOLIC = [
    # (answer, gold answer, equal): neither text nor exact numbers decide
    (r"2\sqrt{2}", r"\sqrt{8}", True), (r"2\sqrt{2}", r"\sqrt{7}", False), ("x+1", "1+x", True), ("(x-1)(x+1)", "x^2-1", True), ("x^2y^2", "(xy)^2", True),
    (r"\sqrt{16}", "4", True), ("(3)(4)", "12", True), ("(3)(4)", "7", False), (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}", True), ("18 + 0", "18", True),
    (r"\frac{\cos x}{\sin x}", r"\cot x", True), (r"\frac{\cos x}{\sin x}", r"\tan x", False), ("|x|", "x", False), ("X", "x", False),
    (r"\pi / 10^{20}", r"\pi / 10^{21}", False), (r"0.5\pi", r"\frac{\pi}{2}", True), ("1.4142136", r"\sqrt{2}", False), ("1.2e-3 x", r"\frac{12x}{10^4}", True),
    ("10x - 14y = 8", "5x-7y=4", True), ("5x-7y=-4", "5x-7y=4", False), ("y - 2x = 3", "y = 2x + 3", True), ("3 + 2x = y", "y = 2x + 3", True), ("x = 5", "y = 5", False),
    (r"(3, \pi/2)", r"(3, \frac{\pi}{2})", True), (r"(\frac{\pi}{2}, 3)", r"(3, \frac{\pi}{2})", False), (r"\{2, \sqrt{4} + 1\}", "3, 2", True),
    (r"(0.6, \sqrt{4}]", r"(\frac35, 2]", True), ("E_{1}/3 + 2E_{2}/3", r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}", True), (r"\arcsin(10/13)", "np.arcsin(10/13)", True),
    (r"2 r_0 \sqrt{\pi G \rho}", r"\sqrt{4 \pi G \rho r_0^2}", True), ("a banana 42", "42", False), (r"\text{not } 42", "42", False), ("1/0", "5", False),
    (r"\frac{dM}{dt} = M^7", r"\frac{dM}{dt} = M^6", False), ("-30^\\circ", r"-\frac{\pi}{6}", False),
]  # fmt: skip


@pytest.mark.parametrize("answer, gold", SAME, ids=[f"{a} = {g}" for a, g in SAME])
def test_same_answers(answer: str, gold: str) -> None:
    assert same_answer(answer, gold) is True


@pytest.mark.parametrize("answer, gold, why", DIFFERENT, ids=[f"{a} / {g}" for a, g, _ in DIFFERENT])
def test_different_answers(answer: str, gold: str, why: str) -> None:
    assert same_answer(answer, gold) is not True


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(timeout=30.0) as verifier:
        yield verifier


def graded(verifier: Verifier, pairs: list[tuple[str, str]]) -> list[str]:
    return [verdict.outcome for verdict in verifier.score_many(pairs)]


def test_the_verdict_on_every_row_of_the_tables(verifier: Verifier) -> None:
    rows = [(a, g, True) for a, g in SAME] + [(a, g, False) for a, g, _ in DIFFERENT] + SYMBOLIC
    verdicts = verifier.score_many([(rf"so \boxed{{{a}}}", g) for a, g, _ in rows])
    missed = [(a, g, v.outcome) for (a, g, same), v in zip(rows, verdicts, strict=True) if v.outcome != ("correct" if same else "wrong")]
    assert not missed
    assert all(v.reward == float(v.outcome == "correct") and v.extracted is not None for v in verdicts)


@pytest.mark.parametrize(
    "response, gold, outcome, why",
    [
        (r"\boxed{42} as said, \boxed{ 42.0 }", "42", "correct", "several boxes with one value"),
        (r"\boxed{\sqrt{8}} = \boxed{2\sqrt{2}}", r"\sqrt{8}", "correct", "several boxes, all of them right"),
        (r"\boxed{\sqrt{8}} = \boxed{3}", r"\sqrt{8}", "wrong", "several boxes, one of them right"),
        (r"\boxed{41} or rather \boxed{42}", "42", "wrong", "the last one is right"),
        (r"$x = \boxed{1}$ or $x = \boxed{-2}$", "-2, 1", "correct", "the parts of a list, each in its box"),
        (r"$x = \boxed{1}$", "-2, 1", "wrong", "a part of a list"),
        (r"so $a = -8 \cdot 32 = -\boxed{256}$", "-256", "correct", "a sign before the box"),
        (r"so $a = -8 \cdot 32 = -\boxed{256}$", "256", "wrong", "a sign before the box"),
        (r"so $a = -8 \\cdot 32 = -\\boxed{256}$", "-256", "correct", "a sign before a box that was escaped twice"),
        (r"It is $-\boxed{x+1}$", "-x-1", "correct", "a sign before a sum"),
        ("Answer:\n- \\boxed{5}", "5", "correct", "the bullet of a list"),
        (r"$10-\boxed{5}$", "5", "correct", "a difference"),
        (r"Answer: -\boxed{\text{(A)}}", "A", "correct", "a dash before a choice"),
        (r"\boxed{\[ \boxed{4489} \]}", "4489", "correct", "a box in a displayed box"),
        (r"\boxed{\[ \boxed{2, 3, 7} \]}", "2, 3, 7", "correct", "a boxed list in a displayed box"),
        (r"\boxed{x = \boxed{5}}", "5", "correct", "a box in a box, and a name"),
        (r"\boxed{\boxed{1999}+1}", "1999", "wrong", "a box in a sum"),
        (r"\boxed{2\boxed{5}}", "5", "wrong", "a box in a product"),
        (r"\boxed{42}", "", "gold_unparseable", "no gold answer"),
        (r"\boxed{42}", r"x \frac{", "gold_unparseable", "a gold answer that is no mathematics"),
        (r"\boxed{x \frac{ }", r"x \frac{ ", "no_answer", "a box that does not close"),
        ("I do not know.", "42", "no_answer", "no answer"),
    ],
)
def test_responses(verifier: Verifier, response: str, gold: str, outcome: str, why: str) -> None:
    assert graded(verifier, [(response, gold)]) == [outcome]


def test_leniencies_are_off_unless_asked_for(verifier: Verifier) -> None:
    rows = [
        (r"\boxed{50\%}", "50"), (r"\boxed{50}", r"50\%"), (r"\boxed{41}, no, \boxed{42}", "42"), (r"\boxed{[1, 2]}", "(1,2)"), (r"\boxed{\{1, 2\}}", "(1,2)"),
        (r"\boxed{(1, \sqrt{4})}", "1, 2"),
    ]  # fmt: skip
    still_wrong = [
        (r"\boxed{0.5}", r"50\%"),
        (r"\boxed{42}, no, \boxed{41}", "42"),
        (r"\boxed{1, 2, 3}", "(1,2)"),
        (r"\boxed{5, 6}", "5"),
        (r"\boxed{0.333}", "1/3"),
    ]
    assert graded(verifier, rows + still_wrong) == ["wrong"] * 11
    with Verifier(timeout=30.0, workers=1, lenient=True) as lenient:
        assert graded(lenient, rows + still_wrong) == ["correct"] * 6 + ["wrong"] * 5
        assert graded(lenient, [("no answer", "5"), (r"\boxed{18}", "18"), (r"\boxed{\text{east}}", "east")]) == [
            "no_answer",
            "correct",
            "correct",
        ]


FORMS = [
    "Thus the answer is $\\boxed{@}$.", "\\[\\boxed{ @ }\\]", "The final answer is $@$. I hope it is correct.", "**Final Answer**\n\n\\(@\\)", "Answer: @",
    "#### @", "<think>\\boxed{1}</think> \\boxed{@}", "<answer>@</answer>", "$@$", "The answer is **@**.", "\\boxed{x = @}", "\\boxed{@.}",
]  # fmt: skip


WRONG_FORMS = (r"\boxed{@} or \boxed{31337}", r"\boxed{@, 31337}", r"<think>\boxed{@}", "#### @\n#### 31337", r"\boxed{31337}")


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLD_ANSWERS)
def test_gold_answers_in_the_forms_that_models_write(verifier: Verifier, name: str) -> None:
    golds = [(gold_answers(value) or ())[0] for value in GOLD_ANSWERS[name]]
    answers = [gold_answer(gold) for gold in golds]  # those of GSM8K are whole solutions
    assert verifier.unparseable(golds) == []
    pairs = [
        (form.replace("@", answer), gold)
        for answer, gold in zip(answers, golds, strict=True)
        for form in FORMS
        if "= @" not in form or not ("=" in answer or answer.startswith(r"\text{("))  # an equation or a choice is no value of x
    ]
    assert not [pair for pair, outcome in zip(pairs, graded(verifier, pairs), strict=True) if outcome != "correct"]
    for wrong in WRONG_FORMS:
        assert "correct" not in graded(verifier, [(wrong.replace("@", a), g) for a, g in zip(answers, golds, strict=True)]), wrong
