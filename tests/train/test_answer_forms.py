"""Forms of answers: choices, chains, lists, sets, intervals, matrices, equations; and order in the lenient mode."""

from __future__ import annotations

import pytest

from tests.train.grading import boxed, outcome

SAME = [
    # choices
    ("C", r"\text{(C)}"), ("C (145°)", "C"), ("(B), No", "B"), ("Option A", "A"), ("The correct choice is (A)", "A"), ("(A)42", "A"), (r"{\bf (A)}", "A"), ("E", r"(\text{E})"), (r"\text{E}", r"(\text{E})"), ("C: 42", "C"), ("C) 42", "C"), ("(C) -1", "C"), ("(A)42", "42"),
    (r"\textbf{(C) }42", "C"), (r"\text{(B) No}", "B"), (r"\textbf{(C)}\ 42", r"\text{(C)}\ 42"), ("C", r"\text{(C) } 42"), ("42", r"\text{(C) } 42"),
    ("A (Connor)", r"\text{(A) Connor}"), ("A (Connor)", "Connor"), (r"B (4\pi cm)", r"4\pi cm"), ("A (0, 0)", "(0,0)"), ("(d)", "D"), (r"\text{(d)}", "D"), ("5-2-3-1-4", "5-2-3-1-4"), ("(A) 5-2-3-1-4", "5-2-3-1-4"), ("Tokyo (D)", "D"), ("Tokyo (D)", "tokyo"), ("42 (D)", "42"), ("P(A)", "P(A)"), ("cos (B)", r"\cos B"),
    # an exact value and its decimal, in either place
    (r"\frac{9}{7} \approx 1.2857", r"\frac97"), (r"x=\frac13 \approx 0.333", r"\frac13"), (r"2\sqrt2 \approx 2.828", r"2\sqrt2"), (r"2\sqrt2 \approx 2.828", "2.828"), (r"V = 36\pi \approx 113.1\text{ cm}^3", r"36\pi"), (r"\frac23 \approx 0.66", r"\frac23"), (r"\frac13 \approx +0.33", r"\frac13"), (r"\frac13 \approx .33", r"\frac13"), (r"\frac13 \approx €0.33", r"\frac13"),
    (r"\frac{100}{7} \approx 14", "14"), (r"x \approx 1.25", "1.25"), ("1.25", r"x \approx 1.25"), (r"2\sqrt2", r"2\sqrt2 \approx 2.83"), (r"\approx 1.25", "1.25"), (r"e^{-5} \approx 6.7 \times 10^{-3}", "e^{-5}"),
    # chains and labels
    ("3x = 3 + 12 = 15", "15"), ("15 = x", "15"), (r"\text{Total: } 15", "15"), ("The answer is 15", "15"), (r"\angle ABC = 60^\circ", "60"), ("I(0)", "x = I(0)"),
    ("x = 5+6 = 11", "x = 11"), ("y = 2x+1+2 = 2x+3", "y=2x+3"), (r"A = \pi r^2 = 9\pi", r"A=9\pi"), (r"x = \frac{10}{14} = \frac57 \approx 0.714", r"x=\frac57"), (r"6", r"S = \frac12 ab = 6"), ("z = 3+3 = 6", "z = 5+1 = 6"), ("x=y=z", "x=y=z"), ("(x,y) = (1+1, 3) = (2,3)", "(2,3)"),
    (r"-\frac{\omega_{L} \hbar}{c}", r"\Delta p\approx -\frac{\hbar \omega_{L}}{c}"), ("5", r"\Delta p = 5"), ("f(5)=0", "0"), ("a+b=0", "0"), ("x^2-y^2 = 0", "0"), ("x_1+x_2=0", "0"),
    ("8,094 - 1,649 = 6,445", "6,445"), ("6,678 + 2,183 = 8,861 tractors", "8,861"), ("7,281 x 3 = 21,843", "21,843"), ("$3,686.00 + 4,173.00 = 7,859.00", "7859"),
    # names of geometry
    ("60", r"\angle ABC = 60^\circ"), (r"m\angle A = 60^\circ", "60"), (r"\angle ABC = 90^\circ - 30^\circ = 60^\circ", r"\angle ABC = 60^\circ"), ("1", "|AB|=1"), (r"\frac{1}{\sqrt6}", r"\frac{NO}{BO}=\frac{1}{\sqrt{6}}"), (r"\overline{AB}=5", "5"), (r"\vec{v} = (1,2)", "(1,2)"),
    (r"\pi \approx 3.14", r"\pi"), (r"\pi \approx 3.14", "3.14"), (r"\phantom{0}5", "5"), (r"\text{five}", "5"), (r"4\text{ boys, }5\text{ girls}", "4, 5"),
    # digits and decimals
    ("１２", "12"), ("١٢", "12"), ("0.333...", r"\frac13"), (r"0.333\ldots", r"\frac13"), (r"0.\bar 3", r"\frac13"), (r"0.\dot{3}", r"\frac13"), (r"0.1\overline{6}", r"\frac16"), ("0.(3)", r"\frac13"), ("0.1212...", r"\frac{4}{33}"),
    (r"\frac{12}{5525}", r"\frac{12}{5,\!525}"), ("-221_3", "-221_3"), (r"-221_{\text{three}}", "-221_3"),
    ("0.088", r"\text{.088 m}^2"), ("14 {, }916", "14916"), ("1, 2", r"x_{1}=1,\quadx_{2}=2"),
    (r"\{ \}", r"\emptyset"), (r"\varnothing", r"\{\}"), (r"x \in \emptyset", r"\emptyset"),
    # lists, sets, tuples, ratios
    (r"\{1,2,2\}", r"\{1,2\}"),
    (r"A \cap B = \{1,2\}", r"\{2,1\}"), (r"\{1,2\}", r"A \cap B = \{1,2\}"), ("x_1=10, x_2=7", "7, 10"), (r"\begin{cases}x=1\\y=2\end{cases}", "x=1, y=2"), ("V_1:V_2=11:21", "11:21"), ("2 : 3", "2:3"), (r"\sqrt{4}:3", "2:3"),
    (r"1 \mp \sqrt2", r"1 \pm \sqrt2"), (r"y=\pm 2x", "y=2x, y=-2x"), (r"x = k\pi (k \in \mathbb{Z})", r"x = k\pi, k \in \mathbb{Z}"), ("5,", "5"),
    (r"\text{6 girls and 5 boys}", r"5\text{ boys, }6\text{ girls}"), ("1 boy and 2 girls", "2 girls, 1 boys"), ("(5,2),(7,2)", "p=5,q=2;p=7,q=2"), ("p=7,q=2;p=5,q=2", "p=5,q=2; p=7,q=2"), ("p=5,q=2;p=7,q=2", r"p = 5, q = 2 \quad \text{and} \quad p = 7, q = 2"), ("28 percentage", r"28\%"),
    # intervals and sets of real numbers
    (r"(0,\pi)", r"0<\theta<\pi"), (r"(0,\infty)", r"\epsilon>0"), (r"\eta>0", r"\eta\in(0,\infty)"), (r"\eta^2_0", r"\eta_0^2"), ("(0,1)", "0<f(x)<1"), ("0<y<1", "0<f(x)<1"), ("(1,2)", "2>a_n>1"), ("x>2, y>1", "y>1, x>2"), (r"x \neq 1, y \neq 2", r"y \ne 2, x \ne 1"), (r"x\in(-\infty,1)\cup(2,\infty)", "x<1 or x>2"), ("0<x<a", "(0,a)"), (r"a_1 \in (3,\infty)", "a_1>3"),
    (r"\mathbb R", r"(-\infty,\infty)"), (r"x \in \mathbb{R}", r"(-\infty,+\infty)"), (r"[1,2]\cup[2,3]", "[1,3]"), (r"[1,2)\cup[2,\sqrt9]", "[1,3]"), (r"(-\infty,0)\cup(0,\infty)", r"\mathbb{R}\setminus\{0\}"), (r"x\ne 0", r"\mathbb{R}\setminus\{0\}"),
    (r"(-\infty,1)\cup(1,2)\cup(2,\infty)", r"\mathbb{R} \setminus \{2, 1\}"), (r"x\le 1 \text{ or } x \ge 3", r"(-\infty,1]\cup[3,\infty)"), (r"[3,\infty)\cup(-\infty,1]", r"(-\infty,1]\cup[3,\infty)"), (r"(0,a)\cup(a,1)", r"(a,1)\cup(0,a)"), (r"(0,1)\cup\{1\}", "(0,1]"),
    (r"n \le k \le 2n", r"{n \le k \le 2n}"), ("[n,2n]", r"{n \le k \le 2n}"), (r"\{x : x>1\}", "x>1"), ("x<1", "(-\\infty,1)"), ("3>a>1", "(1,3)"), (r"3 > a \ge 1", "[1,3)"), (r"\{x\mid x<-1 \text{ or } x>2\}", r"(-\infty,-1)\cup(2,\infty)"), (r"\text{A and C}", "C, A"),
    # equations and inequalities
    ("-x>-1", "x<1"), ("2x>2y", "x>y"), ("y<x", "x>y"), ("10x - 14y = 8", "5x-7y=4"), ("y=3x-1", "y-2=3(x-1)"), (r"e^x + y = 2\pi", r"2e^x+2y=4\pi"), ("2 < x+1 < 3", "2<x+1<3"), ("f(4)>f(1)>f(2)", "f(2)<f(1)<f(4)"), ("1+1<3", "2<3"), ("4=2+2", "2+2=4"), (r"x \ne y", r"2y \ne 2x"),
    # matrices
    (r"\\begin{pmatrix} x \\\\ \\sqrt{3} \\end{pmatrix}", r"\begin{pmatrix} x \\ \sqrt{3} \end{pmatrix}"),
    (r"\frac12\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1/2\\1\end{pmatrix}"), (r"-\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}-1\\-2\end{bmatrix}"), (r"\begin{pmatrix}1&3\\2&4\end{pmatrix}^T", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"f(x)=\begin{cases}x & x>0\\-x & x\le 0\end{cases}", r"\begin{cases}-x, & \text{if } x\le 0\\ x, & \text{if } x>0\end{cases}"),
    # words
    (r"\text{an ellipse}", r"\text{ellipse}"), ("The ellipse", "ellipse"), ("BA", "AB"), (r"\{1,2,\ldots,n\}", r"\{1,2,\dots,n\}"), (r"\mathbb Z^{+}", r"\mathbb{Z}^+"), ("(2,1),(1,2)", "(a,b)=(1,2),(2,1)"), (r"\text{black and white}", r"\text{black and white}"),
]  # fmt: skip
DIFFERENT = [
    ("I", "I, III and V"), ("I", r"\text{I, III and V}"), ("B", "B, CD and EF"), ("5-4-3-2-1", "5-2-3-1-4"), ("-5", "5-2-3-1-4"), ("(A) 5-4-3-2-1", "5-2-3-1-4"), ("2024-12-1", "2024-1-12"), ("P_1, P_2", "P_1 and P_2 have the same perimeter"),
    ("Mr. Boone", "Mr. Watson"), ("Watson", "Mr. Watson"), ("9:50 P.M.", "9:50 A.M."), ("(B) 9:50 P.M.", "9:50 A.M."),
    # what a number is of
    ("6 boys and 5 girls", "5 boys and 6 girls"), (r"6\text{ boys}, 5\text{ girls}", r"5\text{ boys}, 6\text{ girls}"), (r"\text{6 dimes and 5 pennies}", r"5\text{ dimes, }6\text{ pennies}"), ("(2,5),(2,7)", "p=5,q=2;p=7,q=2"), ("p=2,q=5;p=2,q=7", "p=5,q=2;p=7,q=2"),
    ("y>1, x>2", "x>1, y>2"), (r"\eta>0", r"\zeta>0"), (r"\epsilon \ge 0", r"\epsilon>0"), ("y>5", "x>5"), ("z>y", "x>y"), ("z>2y", "x>2y"), ("a_3>a_2", "a_1>a_2"), ("h(x)>g(x)", "f(x)>g(x)"), ("0<b<1", "0<a<1"), (r"y \ne 3", r"x \ne 3"), (r"x \neq 1, y \neq 2", r"y \ne 1, x \ne 2"), ("g(x)=2x", "f(x)=2x"),
    # an equation that is not solved, conditions, words
    ("x-5=0", "0"), ("2x+3y-z-3=0", "0"), ("x^2-4x=0", "0"), ("2x=0", "0"), (r"y=x+1 if 2k+1=3 (k= integer)", r"y=x+2 if 2k+1=3 (k= integer)"), (r"y = 3^k if \omega\tau-\phi=(2k+1)\pi (k= integer)", r"y = 2^k if \omega\tau-\phi=(2k+1)\pi (k= integer)"),
    (r"W(x)=2x, x \geq 0 She must make 5600 in sales", r"W(x)=2x, x \geq 0 She must make 5500 in sales"), ("0 must make 56", "0 must make 55"),
    ("D", r"\text{(C)}"), ("C or D", "C"), ("C and D", "C"), ("(C), (D)", "C"), ("C, D", "C"), ("(C) or (D)", "C"), ("(C)+1", "C"), ("(C), 31337", "C"), ("(C)^2", "C"), ("(C) not", "C"), ("I(0)+1", "I(0)"), ("(D) 42", r"\text{(C) } 42"), ("(C) 41", r"\text{(C) } 42"), ("(A) 41", "42"),
    ("A (Connor)", "B"), ("A (Connor)", "Yes"), ("B (No)", "(A) No"), ("A (not Connor)", "Connor"), ("(i)", "I"), ("d", "D"), ("P (A)", "A"), ("sin (A)", "A"), ("not Tokyo (D)", "D"), ("41 (D)", "42"),
    ("x = 5+6 = 12", "x = 11"), ("y = 5+6 = 11", "x = 11"), ("y = 3 = 11", "x = 11"), ("1", "x=y=1"), ("x=1", "x=y=1"), ("x=1 y=5", "x=2 y=5"), ("not 0", "0"), ("not x=5", "5"), (r"\text{not }x=5", "5"), ("if x=5", "5"), ("maybe=5", "5"), ("wrong x=5", "x=5"), ("4;007", "4007"), ("banana 0", "0"), ("if 0", "0"), ("0 for all x", "0"), ("cat 0", "dog 0"), (r"anything \cdot 0", "0"), ("a=1 b=5, c=3", "a=2 b=5, c=3"), (r"2x=\{1,2\}", r"x=\{1,2\}"), (r"1+x=[1,2)\cup[3,4)", r"x=[1,2)\cup[3,4)"), ("2x=(1,2)", "(1,2)"), ("f(y)=1/y for 0<y<2 and 0 otherwise", "f(y)=2/y for 0<y<2 and 0 otherwise"), ("x=2 y=3", "3"), ("d=6, M=(1,2)", "d=5, M=(1,2)"), ("a=1 b=(2,3)", "a=5 b=(2,3)"), ("4<5", "2<3"), ("f(2)<f(1)<f(5)", "f(2)<f(1)<f(4)"), ("3=3", "2=2"), ("7", r"S = \frac12 ab = 6"), (r"\angle A = 60^\circ", r"\angle B = 60^\circ"), (r"\frac{CD}{AB}=5", r"\frac{AB}{CD}=5"), ("1", "|x|=1"), ("1,2,2", "1,2"), (r"\text{5 wrong}^2", "5"),
    (r"\frac12 \approx +0.9", "0.9"), (r"\frac12 \approx (0.9)", "0.9"), (r"\frac13 \approx 1/2", r"\frac13"), (r"-\frac13 \approx +0.33", r"-\frac13"),
    (r"\frac{9}{7} \approx 1.30", r"\frac97"), (r"2\sqrt2 \approx 2.9", r"2\sqrt2"), (r"\frac13 \approx 0.5", "0.5"), (r"\frac13 \approx 0.5", r"\frac13"), (r"\sqrt2 \approx 1.42", r"\sqrt2"), ("1.2857", r"\frac97 \approx 1.2857"), (r"\frac97 \approx 1.2857", "1.28"), ("41 = 42", "41"),
    ("0.333", r"\frac13"), ("0.33...", "0.33"), (r"0.\overline{3}", "0.3"), ("222_3", "-222_3"), ("5", r"\emptyset"), (r"\{1\}", r"\emptyset"), (r"\emptyset, 1", r"\emptyset"), ("V_1:V_2=21:11", "11:21"), ("2:4", "1:2"), ("2:3", r"\frac23"), ("4:30", "2:15"),
    (r"A \cap B = \{1,3\}", r"\{1,2\}"), (r"\begin{cases}x=1\\y=3\end{cases}", "x=1, y=2"), (r"\pm 2x", "2x"), (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^T", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"), (r"\frac12\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1/2\\2\end{pmatrix}"),
    (r"[1,2)\cup(2,3]", "[1,3]"), (r"(-\infty,1)\cup[3,\infty)", r"(-\infty,1]\cup[3,\infty)"), (r"x\ne 1", r"x\ne 2"), (r"\mathbb{R}", r"\mathbb{R}\setminus\{0\}"), (r"(0,1)\cup\{2\}", "(0,2]"), (r"[0,1]\cup[2,3]", "[0,3]"), (r"x \ge 3", "x>3"),
    ("-x>-1", "x>1"), ("-x>1", "x<1"), ("x<y", "x>y"), (r"x \le y", "x<y"), ("y=3x-1", "y=3x+1"), ("x^2=4", "x=2"), ("0=0", "x=x"), (r"\text{A and C}", "A"), ("on", "no"), (r"\text{The wrong answer is } 5", "5"), (r"\text{It isn't: } 5", "5"), (r"\text{At least: }5", "5"), (r"\text{not } A = \{1,2\}", r"\{1,2\}"), (r"\pi \approx 3.2", r"\pi"), (r"3 \ge a > 1", "[1,3)"), (r"\text{black and white}", r"\text{black}"), ("anagram", "managra"), ("BACD", "ABCD"), ("5\\ldots", "5"), (r"\mathbb{Z}^-", r"\mathbb{Z}^{+}"),
]  # fmt: skip


@pytest.mark.parametrize("answer, gold", SAME, ids=[f"{a} = {g}" for a, g in SAME])
def test_the_same_answer_in_another_form(answer: str, gold: str) -> None:
    assert boxed(answer, gold) == "correct"


@pytest.mark.parametrize("answer, gold", DIFFERENT, ids=[f"{a} / {g}" for a, g in DIFFERENT])
def test_another_answer_in_a_like_form(answer: str, gold: str) -> None:
    assert boxed(answer, gold) != "correct"


@pytest.mark.parametrize(
    "answer, gold, expected",
    [
        ("(35,44)", "(44,35)", "wrong"), ("[35,44]", "(44,35)", "wrong"), ("35,44", "(44,35)", "wrong"), ("44,35", "(44,35)", "correct"), (r"\{44,35\}", "(44,35)", "correct"),
        ("(C,A,E,D,B)", "(C,E,D,A,B)", "wrong"), ("C,E,D,A,B", "(C,E,D,A,B)", "correct"), ("(1,2)", "2,1", "correct"), ("(1,2)", r"\{2,1\}", "correct"), ("(1,2]", "[1,2)", "correct"), (r"(\sqrt4, 1)", "(2,1)", "correct"), (r"(1,\sqrt4)", "(2,1)", "wrong"),
    ],
)  # fmt: skip
def test_lenient_forgets_brackets_and_not_the_order_of_a_gold_tuple(answer: str, gold: str, expected: str) -> None:
    assert outcome(rf"\boxed{{{answer}}}", gold, lenient=True) == expected
