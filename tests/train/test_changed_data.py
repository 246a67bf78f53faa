"""Data, a template or a reward function that changed between start and resume is said; a date in the prompts is that of the run's beginning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aer_train.cli import main
from aer_train.run.folder import read_config
from tests.train.conftest import save_byte_model

TINY = [
    "--data.chat",
    "True",
    "--rollout.group-size",
    "2",
    "--rollout.max-new-tokens",
    "4",
    "--optim.prompts-per-step",
    "2",
    "--run.threads",
    "1",
]


def write_data(path: Path, count: int, answer: int = 2) -> Path:
    path.write_text("".join(json.dumps({"problem": f"{i}+1=?", "answer": str(i + answer)}) + "\n" for i in range(count)))
    return path


def prompts_of(run: Path, step: int) -> set[str]:
    import pyarrow.parquet as pq

    return {row["prompt"] for row in pq.read_table(run / "samples" / f"step_{step:06d}.parquet").to_pylist()}


@pytest.mark.slow
def test_what_changed_is_said_at_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, run = tmp_path / "model", tmp_path / "run"
    save_byte_model(model)
    data = write_data(tmp_path / "data.jsonl", 20)
    held_out = write_data(tmp_path / "held_out.jsonl", 3, 7)
    sets = ["--data.train", str(data), "--eval.data", str(held_out), "--eval.samples", "1"]
    assert main(["train", "--model.name", str(model), *sets, *TINY, "--run.steps", "1", "--run.out", str(run)]) == 0
    capsys.readouterr()

    def resumed(steps: int, *flags: str) -> str:
        assert main(["train", "--resume", str(run), "--run.steps", str(steps), *flags]) == 0
        return capsys.readouterr().err

    assert resumed(2) == ""
    write_data(data, 7)
    text = f"warning: since the run began, the data in {data} have other problems or answers (7 prompts, and had 20). The steps from here on use"
    assert resumed(3).startswith(text)
    assert resumed(4) == "", "it is said once"
    write_data(data, 7, answer=3)
    assert f"the data in {data} have other problems or answers (7 prompts, and had 7)" in resumed(5)
    found = resumed(6, "--data.template", "{problem}!")
    assert f"the data in {data} are rendered otherwise" in found and f"the data in {held_out} are rendered otherwise" in found
    assert found.count("changed: data.template.") == 1
    newest = sorted((run / "checkpoints").iterdir())[-1]
    template = newest / "chat_template.jinja"
    manifest = json.loads((newest / "state.json").read_text())
    template.write_text(template.read_text() + " ")
    del manifest["files"][template.name]
    (newest / "state.json").write_text(json.dumps(manifest))
    assert "changed: the tokenizer's chat template." in resumed(7)
    other = write_data(tmp_path / "other.jsonl", 5)
    assert f"the data are {other} (train), and were {data} (train)" in resumed(8, "--data.train", str(other))


@pytest.mark.slow
def test_a_run_has_one_date(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, run, out = tmp_path / "model", tmp_path / "run", tmp_path / "evaluation"
    save_byte_model(model)
    (model / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y %H:%M:%S') }}: {{ messages[-1].content }}")
    data = write_data(tmp_path / "data.jsonl", 2)
    for module in ("trainer", "evaluation.folder"):
        monkeypatch.setattr(f"aer_train.{module}.today", lambda: "2026-02-03")
    assert main(["train", "--model.name", str(model), "--data.train", str(data), *TINY, "--run.steps", "1", "--run.out", str(run)]) == 0
    evaluation = ["eval", "--model", str(model), "--data", str(data), "--samples", "1", *TINY, "--out", str(out)]
    assert main(evaluation) == 0
    for module in ("trainer", "evaluation.folder"):
        monkeypatch.setattr(f"aer_train.{module}.today", lambda: "2026-02-04")
    assert main(["train", "--resume", str(run), "--run.steps", "2"]) == 0
    assert prompts_of(run, 1) == prompts_of(run, 2) == {f"03 Feb 2026 00:00:00: {i}+1=?" for i in range(2)}
    assert read_config(run)["data"]["date"] == "2026-02-03" and "warning" not in capsys.readouterr().err
    assert main(evaluation) == 0, "the same command, a day later"
    assert json.loads((out / "settings.json").read_text())["date"] == "2026-02-03"
    assert main([*evaluation, "--data.date", "2026-02-04"]) == 2
    assert "got" in capsys.readouterr().err


@pytest.mark.slow
def test_a_reward_function_that_was_edited(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its name, and another one judges: a resumed run says so, an evaluation that was begun is refused."""
    model, run, out, rules = tmp_path / "model", tmp_path / "run", tmp_path / "evaluation", tmp_path / "edited_rules.py"
    save_byte_model(model)
    data = write_data(tmp_path / "data.jsonl", 4)
    rules.write_text("def judged(response: str, answer: str) -> float:\n    return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    judge = ["--reward.kind", "edited_rules.judged"]
    train = ["train", "--model.name", str(model), "--data.train", str(data), *judge, *TINY, "--run.steps", "1", "--run.out", str(run)]
    evaluation = ["eval", "--model", str(model), "--data", str(data), "--samples", "1", *judge, *TINY, "--out", str(out)]
    assert main(train) == 0 and main(evaluation) == 0 and main(evaluation) == 0
    rules.write_text(rules.read_text().replace("1.0", "0.0"))
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--run.steps", "2"]) == 0
    assert "since the run began, the file of edited_rules.judged has changed." in capsys.readouterr().err
    assert main(evaluation) == 2
    assert "--out must be a new folder or one of the same evaluation" in capsys.readouterr().err
