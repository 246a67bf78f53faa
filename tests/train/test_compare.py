import json
from pathlib import Path

import numpy as np
import pytest

from aer_train.evaluation.compare import compare, compare_files
from aer_train.evaluation.evaluate import summarize
from aer_train.run.files import eval_json

N = 4


def evaluation(correct: dict[str, int], **change: object) -> dict[str, object]:
    """An evaluation in which problem `id` of tier id[0] has so many correct responses of N."""
    rows = [
        {"tier": name[0], "problem_id": name, "answer": "2", "extracted": "2" if i < right else "3", "outcome": "correct" if i < right else "wrong",
         "reward": 0.0, "num_tokens": 1, "finished": True}
        for name, right in correct.items() for i in range(N)
    ]  # fmt: skip
    settings = {"model": "m", "samples": N, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "reward": "math", "seed": 0}
    return {**settings, **summarize(rows, N, 0), **change}


def test_a_paired_difference_by_hand() -> None:
    """Every problem gains one response: the difference has no spread, however unequal the problems are."""
    a = evaluation({"x1": 0, "x2": 3, "y1": 1, "y2": 2})
    b = evaluation({"x1": 1, "x2": 4, "y1": 2, "y2": 3})
    found = compare(a, b)
    assert list(found["tiers"]) == ["x", "y", "all", "mean"]
    for numbers in found["tiers"].values():
        assert numbers["difference"]["accuracy"] == pytest.approx(0.25)
        assert numbers["difference"]["accuracy_interval"] == pytest.approx([0.25, 0.25])
    assert found["tiers"]["x"]["difference"]["pass@k"]["4"] == pytest.approx(0.5)
    assert found["tiers"]["x"]["a"] == {k: v for k, v in a["tiers"]["x"].items() if k in found["tiers"]["x"]["a"]}
    assert found["tiers"]["all"]["b"]["majority@k"] == b["tiers"]["all"]["majority@k"]


def test_the_interval_is_that_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, N + 1, 60), rng.integers(0, N + 1, 60)
    found = compare(*(evaluation({f"x{i}": int(c) for i, c in enumerate(counts)}) for counts in (first, second)))
    difference = (second - first) / N
    numbers = found["tiers"]["x"]["difference"]
    width = 2 * 1.96 * difference.std() / np.sqrt(60)
    low, high = numbers["accuracy_interval"]
    assert numbers["accuracy"] == pytest.approx(difference.mean()) and high - low == pytest.approx(width, rel=0.05)
    assert found["problems"][0]["a"] - found["problems"][0]["b"] in (N, -N)


def test_problems_are_paired_by_id() -> None:
    a, b = evaluation({"x1": 0, "x2": 3}), evaluation({"x2": 3, "x1": 0})
    assert compare(a, b)["tiers"]["x"]["difference"]["accuracy_interval"] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"samples": 8}, "both evaluations must have the same samples, got 4 and 8"),
        ({"temperature": 0.6}, r"both evaluations must have the same temperature, got 1.0 and 0.6"),
        ({"problems": evaluation({"x1": 1, "x3": 2})["problems"]}, "must be of the same problems, got 2 and 2, 1 of them in both"),
    ],
)
def test_what_cannot_be_compared(change: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        compare(evaluation({"x1": 1, "x2": 2}), evaluation({"x1": 1, "x2": 2}, **change))


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "eval.json").write_text(eval_json(evaluation({"x1": 0, "x2": 3})))
    (tmp_path / "run" / "eval").mkdir(parents=True)
    for step, right in ((0, 0), (9, 2)):
        (tmp_path / "run" / "eval" / f"step_{step:06d}.json").write_text(eval_json(evaluation({"x1": right, "x2": right})))
    found = compare_files(tmp_path / "a", tmp_path / "run", tmp_path / "out")
    assert found["tiers"]["x"]["b"]["accuracy"] == 0.5, "the last evaluation of a run"
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == found
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "| x | avg@4 | 0.375 | 0.500 | +0.125 | -0.250..+0.500 |" in text and "| x1 | 2 | 0 of 4 | 2 of 4 |" in text
    assert "+0.125" in capsys.readouterr().out
    (tmp_path / "old.json").write_text('{"samples": 4, "tiers": {}}')
    with pytest.raises(ValueError, match=r"old.json must hold an evaluation with its problems, got one without"):
        compare_files(tmp_path / "a", tmp_path / "old.json", tmp_path / "out")
    with pytest.raises(ValueError, match=r"an evaluation must be a folder of aer-train eval, a run with evaluations"):
        compare_files(tmp_path / "a", tmp_path / "none", tmp_path / "out")
