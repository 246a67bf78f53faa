"""The benchmark of the verifier, on a few pairs: it measures right verdicts."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.verify.__main__ import main
from benchmarks.verify.pairs import KINDS, pairs
from tests.train.grading import outcome


def test_every_pair_is_what_it_was_made_for() -> None:
    made = list(pairs(each=60, seed=1))
    assert len({(pair.response, pair.gold) for pair in made}) > 0.95 * len(made) and {pair.right for pair in made} == {True, False}
    assert [pair for pair in made if (outcome(pair.response, pair.gold) == "correct") != pair.right] == []


def test_the_benchmark(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path), "--each", "3"]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["kind"], row["verifier"]) for row in rows[:2]] == [("integer", "aer_train"), ("integer", "math-verify")]
    assert len(rows) == 2 * (len(KINDS) + 1) and all(row["right"] == row["pairs"] for row in rows if row["verifier"] == "aer_train")
    assert "| all | 15 |" in (tmp_path / "table.md").read_text()
