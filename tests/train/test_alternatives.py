"""Several gold answers to one problem."""

from __future__ import annotations

import pytest

from aer_train.types import Prompt, Verdict
from aer_train.verify import Verifier
from aer_train.verify.alternatives import best, restored, stored, submit, unreadable


def test_right_by_any_of_them() -> None:
    golds = ["7", r"\frac{1}{2}", "x+1"]
    with Verifier(workers=1) as verifier:
        texts = [r"\boxed{0.5}", r"\boxed{7}", r"\boxed{1+x}", r"\boxed{8}", ""]
        found = submit(verifier, [[(text, gold) for gold in golds] for text in texts]).result()
        assert [verdict.outcome for verdict in found] == ["correct", "correct", "correct", "wrong", "no_answer"]
        assert [verdict.extracted for verdict in found[:4]] == ["0.5", "7", "1+x", "8"]
        alone = submit(verifier, [[(r"\boxed{8}", "8")]])
        assert alone.result()[0].outcome == "correct"
        prompts = [
            Prompt("a", "", "", others=("7",)),
            Prompt("b", "", "7", others=("",)),
            Prompt("c", "", "", others=("",)),
            Prompt("d", "", "1"),
        ]
        assert unreadable(verifier, prompts) == [2], "one that can be read is enough"


@pytest.mark.parametrize(
    ("outcomes", "stands"),
    [
        (["wrong", "correct"], "correct"),
        (["gold_unparseable", "wrong"], "wrong"),
        (["wrong", "timeout"], "timeout"),
        (["timeout", "correct"], "correct"),
        (["gold_unparseable", "no_answer"], "no_answer"),
    ],
)
def test_which_verdict_stands(outcomes: list[str], stands: str) -> None:
    verdicts = [Verdict(outcome, float(outcome == "correct"), None, 1.0) for outcome in outcomes]  # type: ignore[arg-type]
    assert best(verdicts).outcome == stands and best(verdicts).seconds == 2.0


def test_the_highest_reward_of_a_function_counts() -> None:
    assert best([Verdict("wrong", 0.25, None, 0.0), Verdict("wrong", 0.5, None, 0.0), Verdict("crash", 0.0, None, 0.0)]).reward == 0.5


def test_saved_and_read_again() -> None:
    prompt = Prompt("a", "", "1", others=("2", '"3"'))
    assert restored(prompt.answer, stored(prompt)) == ["1", "2", '"3"']
    assert stored(Prompt("a", "", "1")) is None and restored("1", None) == ["1"]
    with pytest.raises(ValueError, match="other_answers must be a JSON list of texts"):
        restored("1", "[2]")
