from dataclasses import replace

import pytest

from aer_train.config.tree import EvalConfig, RolloutConfig, TrainConfig
from aer_train.data.prompts import PromptSet
from aer_train.evaluation import evaluate as module
from aer_train.evaluation.evaluate import answer_key, evaluate, summarize, tally, tell_unreadable
from aer_train.model import Policy
from aer_train.rollout.hf import HFRollout
from aer_train.types import Prompt
from aer_train.verify import Verifier

PROMPTS = [Prompt("a", "12=?", "12", "easy"), Prompt("b", "7", "7", "hard"), Prompt("c", "98", "98", "hard")]
CONFIG = TrainConfig(eval=EvalConfig(samples=3), rollout=RolloutConfig(max_new_tokens=4))


def row(outcome: str = "wrong", extracted: str | None = None, tier: str = "easy", finished: bool = True) -> dict[str, object]:
    found = {"tier": tier, "problem_id": "p", "answer": "1 + 1 = 2\n#### 2", "extracted": extracted, "outcome": outcome}
    return found | {"reward": float(outcome == "correct"), "num_tokens": 5, "finished": finished}


def test_a_tally_by_hand() -> None:
    rows = [row("correct", "2"), row("correct", "2.0"), row("wrong", "3"), row("no_answer"), row("correct", "4/2", finished=False)]
    assert tally(rows) == {
        "id": "p",
        "tier": "easy",
        "answer": "2",
        "correct": 3,
        "truncated": 1,
        "tokens": 25,
        "reward": 3.0,
        "outcomes": {"correct": 3, "no_answer": 1, "wrong": 1},
        "votes": [[3, 3], [1, 0]],
    }


def test_one_vote_is_one_number_or_one_form() -> None:
    same = [("1/2", "0.5"), ("\\frac12", "\\frac{1}{2}"), ("5 cm", "5"), ("1,000", "1000"), ("( 1 , 2 )", "(1,2)"), ("x = 3y", "3y")]
    assert all(answer_key(a) == answer_key(b) for a, b in same)
    different = [("50%", "50"), ("1,2", "(1,2)"), ("x", "y"), ("0.33", "1/3")]
    assert all(answer_key(a) != answer_key(b) for a, b in different)


def test_a_summary_by_hand() -> None:
    """Two problems of the easy tier (2 of 2 and 1 of 2 correct), one of the hard tier (0 of 2)."""
    right, wrong = row("correct", "2"), row("wrong", "3")
    hard = row("wrong", "3", tier="hard", finished=False)
    found = summarize([right, right, right, wrong, hard, row("no_answer", tier="hard")], 2, seed=0)
    easy, mean = found["tiers"]["easy"], found["mean"]
    assert list(found["tiers"]) == ["easy", "hard", "all"] and len(found["problems"]) == 3
    assert easy["accuracy"] == easy["pass@k"]["1"] == easy["majority@k"]["2"] == pytest.approx(0.75)
    assert easy["pass@k"]["2"] == 1.0 and easy["pass@k_interval"]["2"] == [1.0, 1.0]
    assert easy["accuracy_interval"] == [0.5, 1.0], "of two problems the resamples are 1/2, 3/4 and 1"
    assert found["tiers"]["all"]["accuracy"] == pytest.approx(0.5) and mean["accuracy"] == pytest.approx(0.375)
    assert mean["accuracy_interval"] == [0.25, 0.5]
    assert found["tiers"]["hard"] | {"problems": 1, "truncated_frac": 0.5, "response_tokens": 5.0, "reward": 0.0} == found["tiers"]["hard"]
    assert found["tiers"]["all"]["outcomes"] == {"correct": 3, "no_answer": 1, "wrong": 2}


def test_custom_rewards_have_no_majority() -> None:
    found = summarize([row("correct"), row("wrong")], 2, seed=0)
    assert "majority@k" not in found["tiers"]["easy"] and found["problems"][0]["votes"] is None


@pytest.mark.slow
def test_samples_do_not_depend_on_batches_chunks_or_other_sets(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [PromptSet(PROMPTS, {"name": "", "source": "data"}), PromptSet(PROMPTS[:2], {"name": "suite", "source": "suite"})]
    with Verifier("math") as verifier:

        def run(sets: list[PromptSet], batch_size: int = 64) -> tuple[dict[str, object], list[dict[str, object]]]:
            return evaluate(HFRollout(policy, replace(CONFIG.rollout, batch_size=batch_size)), verifier, sets, CONFIG)

        result, rows = run(sets)
        assert run(sets, batch_size=2)[1] == rows
        assert run(sets[1:])[1] == rows[9:]
        monkeypatch.setattr(module, "CHUNK", 3)
        assert run(sets) == (result, rows)
    assert [r["response"] for r in rows[:6]] != [r["response"] for r in rows[9:]], "a suite has draws of its own"
    assert [(r["problem_id"], r["sample"]) for r in rows[:9]] == [(p.id, i) for p in PROMPTS for i in range(3)]
    assert list(result["tiers"]) == ["easy", "hard", "all"] and result["samples"] == 3


def test_unreadable_golds_are_named() -> None:
    said: list[str] = []
    prompts = PromptSet([Prompt("a", "", "1"), Prompt("b", "", "")], {"name": "", "source": "file"})
    with Verifier("math") as verifier:
        tell_unreadable(verifier, [prompts], said.append)
    assert said == ["file: 1 of 2 gold answers cannot be read and count as wrong (problem b: '')"]
