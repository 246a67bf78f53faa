"""Verified rewards: a table of answers with known verdicts, and answers that are out to break the verifier."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from aer_train.verify import Verifier
from aer_train.verify.answers import extract, number
from aer_train.verify.verifier import compare

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

EXACT = [
    # (response, gold, outcome): decided without a worker process
    (r"so we get \boxed{18}.", "18", "correct"),
    (r"\boxed{18}", "19", "wrong"),
    ("The reasoning ...\n#### 1,234", "1234", "correct"),
    ("She makes 9 * 2 = <<9*2=18>>18 dollars.\n#### 18", "#### 18", "correct"),
    ("The answer is 42.", "42", "correct"),
    ("The final answer is: **42**", "42", "correct"),
    ("First the answer is 41. No, the answer is 42", "42", "correct"),
    ("42", "42", "correct"),
    ("-3.50", "-7/2", "correct"),
    ("I think 42 and then 43", "43", "no_answer"),
    ("", "43", "no_answer"),
    (r"\boxed{}", "43", "no_answer"),
    (r"\boxed{42", "42", "no_answer"),
    (r"\boxed{41} or rather \boxed{42}", "42", "wrong"),  # two different answers are no answer
    (r"\boxed{42} as said, \boxed{ 42 }", "42", "correct"),
    (r"\boxed{\frac{1}{2}}", "0.5", "correct"),
    (r"\boxed{\dfrac{1}{2}}", r"\frac12", "correct"),
    (r"\boxed{\tfrac{-1}{2}}", "-0.5", "correct"),
    (r"\boxed{-\frac{1}{2}}", "-1/2", "correct"),
    (r"\boxed{1/3}", "0.333333", "wrong"),
    (r"\boxed{1\frac{1}{2}}", "3/2", "correct"),
    (r"\boxed{1 1/2}", "1.5", "correct"),
    (r"\boxed{1.2 \times 10^5}", "120000", "correct"),
    (r"\boxed{4.5e33}", r"4.5 \times 10^{33}", "correct"),
    (r"\boxed{1,234.50}", "1234.5", "correct"),
    (r"\boxed{12,34}", "1234", "wrong"),
    (r"\boxed{\$18.00}", "18", "correct"),
    (r"\boxed{18 \text{ dollars}}", "18", "correct"),
    (r"\boxed{5\text{ cm}}", r"5 \text{ m}", "wrong"),
    (r"\boxed{5\text{ cm}}", r"5 \mathrm{cm}", "correct"),
    (r"\boxed{5 million}", "5", "wrong"),
    (r"\boxed{90^\circ}", "90", "correct"),
    (r"\boxed{50\%}", "50", "wrong"),
    (r"\boxed{50\%}", "0.5", "wrong"),
    (r"\boxed{50\%}", r"50\%", "correct"),
    (r"\boxed{x = 7}", "7", "correct"),
    (r"\boxed{007}", "7", "correct"),
    (r"\boxed{p-q}", "p - q", "correct"),
    (r"\boxed{\left(3, \frac{\pi}{2}\right)}", r"(3,\frac{\pi}{2})", "correct"),
    (r"\boxed{(1,2)}", r"\{1,2\}", "wrong"),
    (r"\boxed{(1,2]}", "[1,2]", "wrong"),
    (r"\boxed{5, 6}", "5", "wrong"),
    (r"\boxed{1, 2, 3, 4, 5, 6}", "5", "wrong"),
    (r"\boxed{42}", "", "gold_unparseable"),
]
SYMBOLIC = [
    (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", "correct"),
    (r"\boxed{2\sqrt{2}}", r"\sqrt{7}", "wrong"),
    (r"\boxed{x+1}", "1+x", "correct"),
    (r"\boxed{(x-1)(x+1)}", "x^2-1", "correct"),
    (r"\boxed{\sqrt{16}}", "4", "correct"),
    (r"\boxed{\frac{6}{3}\cdot 2}", "4", "correct"),
    (r"\boxed{\frac{\sqrt{3}}{3}}", r"\frac{1}{\sqrt{3}}", "correct"),
    (r"\boxed{\text{blue}}", r"\text{red}", "wrong"),
]


@pytest.mark.parametrize("response, gold, outcome", EXACT, ids=[f"{r[-24:]!r}={g}" for r, g, _ in EXACT])
def test_exact(response, gold, outcome):
    found, _ = compare(response, gold)
    assert found == outcome or (found is None and outcome == "wrong" and number(extract(response) or "") is None)


def test_symbolic_in_order_and_with_rewards():
    with Verifier(timeout=20.0) as verifier:
        verdicts = verifier.score_many([(r, g) for r, g, _ in EXACT + SYMBOLIC])
        assert [v.outcome for v in verdicts] == [o for *_, o in EXACT + SYMBOLIC]
        assert all(v.reward == float(v.outcome == "correct") for v in verdicts)


HOSTILE = {
    "power_tower": r"\boxed{9^{9^{9^9}}}",
    "hidden_tower": r"\boxed{(10^{10})!}",
    "many_powers": r"\boxed{\left(\left(2^{999}\right)^{999}\right)^{999} + x}",
    "nested_brackets": r"\boxed{" + "(" * 1_000_000 + "}",
    "nested_braces": r"\boxed{" * 200_000,
    "digits": r"\boxed{" + "9" * 10_000_000 + "}",
    "control_characters": "\\boxed{\x00\x1b[31m\x7f\u202e}",
    "a_million_answers": r"\boxed{1}" * 1_000_000,
    "a_million_words": "answer is " * 1_000_000,
    "unicode_digits": "\\boxed{\uff14\uff12}",
    "commas": r"\boxed{" + "1," * 900 + "}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_cost_at_most_the_deadline(name):
    with Verifier(timeout=1.0, workers=1) as verifier:
        verifier.score_many([(r"\boxed{1+x}", "x+1")])  # the worker is up
        start = time.monotonic()
        (verdict,) = verifier.score_many([(HOSTILE[name], "42+x")])
        assert verdict.outcome in ("wrong", "no_answer", "timeout", "crash") and verdict.reward == 0.0
        assert time.monotonic() - start < 3.0
        assert verifier.score_many([(r"\boxed{1+x}", "x+1")])[0].outcome == "correct"


def sleepy(response: str, answer: str) -> float:
    """A custom reward for the tests below."""
    if response == "sleep":
        time.sleep(60)
    if response == "die":
        os.kill(os.getpid(), 9)
    if response == "exit":
        raise SystemExit
    return {"half": 0.5, "two": 2.0}.get(response, float(response == answer))


def test_custom_reward_that_hangs_dies_and_lies():
    """The module is imported in the worker processes under its dotted path."""
    with Verifier(kind="tests.train.test_verify.sleepy", timeout=1.0, workers=2) as verifier:
        responses = ["right", "sleep", "die", "exit", "half", "two", "right"]
        verdicts = verifier.score_many([(r, "right") for r in responses])
    assert [v.outcome for v in verdicts] == ["correct", "timeout", "crash", "crash", "wrong", "crash", "correct"]
    assert [v.reward for v in verdicts] == [1.0, 0.0, 0.0, 0.0, 0.5, 0.0, 1.0]


def test_submitted_answers_are_graded_while_other_work_goes_on():
    with Verifier(kind="tests.train.test_verify.sleepy", timeout=1.0, workers=2) as verifier:
        start = time.monotonic()
        slow, fast = verifier.submit([("sleep", "right")]), verifier.submit([("right", "right"), ("half", "right")])
        assert time.monotonic() - start < 0.5
        assert [v.reward for v in fast.result()] == [1.0, 0.5]  # a slow answer holds nobody up
        assert [v.outcome for v in slow.result()] == ["timeout"] and slow.result() == slow.result()
    with pytest.raises(ValueError, match="verifier must be open, got one that was closed"):
        verifier.submit([])


def test_works_from_threads_and_leaves_no_process_behind():
    found = []
    with Verifier(timeout=20.0) as verifier:
        threads = [threading.Thread(target=lambda: found.extend(verifier.score_many([(r"\boxed{1+x}", "x+1")] * 4))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pids = verifier._pool.pids()
    assert [v.outcome for v in found] == ["correct"] * 12
    assert pids and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_integers_start_no_process():
    with Verifier() as verifier:
        verifier.score_many([("#### 5", "5")] * 100)
        assert verifier.unparseable(["18", "1/2", "", "#### 7"]) == [2]
        assert verifier._pool.pids() == []


def test_countdown():
    with Verifier(kind="countdown") as verifier:
        verdicts = verifier.score_many([("8+5+3", "358=16"), ("8*5+3", "358=16")])
        assert [v.outcome for v in verdicts] == ["correct", "wrong"]
        assert verifier.unparseable(["358=16", "16"]) == [1]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "no.such.function"}, "reward.kind must be math, an embedded task or a dotted path to a function, got 'no.such.function'"),
        ({"kind": "math.pi"}, "reward.kind must name a function, got 'math.pi' of type float"),
        ({"timeout": 0}, "timeout must be > 0 and finite, got 0"),
        ({"workers": 0}, "workers must be >= 1, got 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        Verifier(**options)


@pytest.mark.parametrize("name, share", [("gsm8k_test", 1.0), ("aime24", 1.0), ("amc23", 1.0), ("math500", 0.97)])
def test_real_gold_answers_equal_themselves(name, share):
    path = SHARED / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{name}.jsonl is not beside this checkout")
    golds = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    with Verifier(timeout=20.0) as verifier:
        verdicts = verifier.score_many([(f"so \\boxed{{{gold}}}", gold) for gold in golds])
        assert sum(v.outcome == "correct" for v in verdicts) >= share * len(golds)
        wrong = verifier.score_many([("\\boxed{123456789}", gold) for gold in golds[:40]])
    assert all(v.reward == 0 for v in wrong)
