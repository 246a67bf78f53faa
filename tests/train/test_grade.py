"""aer-train grade: what was stored, what the verifier says now, and what a second rule says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aer_train.cli import main

ROWS = [
    {"response": r"\boxed{18}", "answer": "18", "outcome": "correct"},
    {"response": r"\boxed{18.0}", "answer": "18", "outcome": "wrong"},
    {"response": r"\boxed{50\%}", "answer": "50", "outcome": "wrong"},
    {"response": r"\boxed{1+x}", "answer": "x+1", "outcome": "correct"},
    {"response": "I do not know.", "answer": "18", "outcome": "wrong"},
]
"""The second row's verdict has changed since; math-verify finds the third one right."""


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sleepy_about_18(response: str, answer: str) -> float:
    """A second rule that hangs on one answer."""
    while answer == "18":
        pass
    return 1.0


@pytest.mark.slow
def test_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = write(tmp_path / "samples.jsonl", ROWS), tmp_path / "found.json"
    assert main(["grade", str(file), "--out", str(out), "--timeout", "30"]) == 0
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert {
        "correct 3 60.00%",
        "wrong 1 20.00%",
        "no_answer 1 20.00%",
        "wrong -> correct 1 20.00%",
        "not correct, correct 1 20.00%",
    } <= set(lines)
    assert lines[-2:] == ["2 of 5 responses disagree with the stored verdict or the second rule", f"2 disagreements written to {out}"]
    found = {row["row"]: row for row in json.loads(out.read_text())}
    assert found.keys() == {1, 2}
    assert (found[1]["stored"], found[1]["outcome"], found[1]["second"], found[1]["disagrees_with"]) == (
        "wrong",
        "correct",
        "correct",
        "stored",
    )
    assert (found[2]["extracted"], found[2]["outcome"], found[2]["second"], found[2]["disagrees_with"]) == (
        r"50\%",
        "wrong",
        "correct",
        "second",
    )


def test_a_run_folder_is_graded_by_its_own_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    rows = [
        {"response": "8+5+3", "answer": "358=16", "outcome": "correct"},
        {"response": "8-5-3", "answer": "358=16", "outcome": "correct"},
    ]
    for step in (1, 2):
        write(run / "samples" / f"step_{step:06d}.parquet", rows)
    (run / "config.json").write_text(json.dumps({"reward": {"kind": "countdown"}}))
    assert main(["grade", str(run), "--fail-on-disagreement", "--out", str(tmp_path / "found.parquet")]) == 1
    assert "correct -> wrong" in capsys.readouterr().out
    found = pq.read_table(tmp_path / "found.parquet").to_pylist()
    assert [(Path(row["file"]).name, row["row"], row["second"]) for row in found] == [
        ("step_000001.parquet", 1, None),
        ("step_000002.parquet", 1, None),
    ]


@pytest.mark.slow
def test_other_columns_rules_and_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": row["response"], "gold": row["answer"], "reward": float(row["outcome"] == "correct")} for row in ROWS[:2]]
    file = write(tmp_path / "a.parquet", rows)
    options = ["--response-column", "text", "--answer-column", "gold", "--fail-on-disagreement"]
    assert main(["grade", str(file), *options, "--second", "exact"]) == 1
    assert "correct, wrong" in capsys.readouterr().out, "18.0 is not 18 letter by letter"
    agreeing = write(tmp_path / "b.jsonl", rows[:1])
    assert main(["grade", str(agreeing), *options, "--second", "none"]) == 0
    assert main(["grade", str(agreeing), *options, "--second", "tests.train.test_grade.sleepy_about_18", "--timeout", "1"]) == 1
    assert "correct, timeout" in capsys.readouterr().out


@pytest.mark.slow
def test_a_rule_in_a_module_of_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text("def closeness(response, answer):\n    return 1.0 if answer in response else 0.0\n")
    file = write(tmp_path / "a.jsonl", ROWS[:2])
    program = "import sys; sys.path.pop(0); from aer_train.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "grade", str(file), "--kind", "my_rewards.closeness"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "correct 2 100.00%" in " ".join(done.stdout.split()), done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "grade must be given at least one file or folder, got none"),
        (["none.jsonl"], "file must be an existing file or folder, got none.jsonl"),
        (["notes.txt"], "file must end in .jsonl, .json, .csv, .parquet, got notes.txt"),
        (["folder"], "folder must hold .jsonl or .parquet files, got none in folder"),
        (["empty.jsonl"], "empty.jsonl must hold at least one row, got an empty dataset"),
        (
            ["a.jsonl", "--answer-column", "gold"],
            "--answer-column must be a column of a.jsonl (answer, outcome, response in row 0), got 'gold'",
        ),
        (
            ["a.jsonl", "--outcome-column", "verdict"],
            "--outcome-column must be a column of a.jsonl (answer, outcome, response in row 0), got 'verdict'",
        ),
        (["number.jsonl"], "answer of row 0 of number.jsonl must be text, got int (18)"),
        (["a.jsonl", "--out", "found.csv"], "--out must end in .json, .jsonl, .parquet, got found.csv"),
        (
            ["a.jsonl", "--second", "no.rule"],
            "--second must be exact, math_verify, none or a dotted path to a function, got 'no.rule': No module named 'no'",
        ),
        (
            ["a.jsonl", "--kind", "no.rule"],
            "reward.kind must be math, an embedded task, a URL or a dotted path to a function, got 'no.rule': No module named 'no'",
        ),
        (["a.jsonl", "--workers", "0"], "workers must be >= 1, got 0"),
    ],
)
def test_user_errors(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", ROWS)
    write(tmp_path / "number.jsonl", [{"response": "18", "answer": 18}])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder").mkdir()
    assert main(["grade", *args]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
