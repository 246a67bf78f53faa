import json
import sys
from collections import Counter, defaultdict
from math import comb
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from aer_train.config.tree import EvalConfig, RewardConfig, RolloutConfig, RunConfig, TrainConfig
from aer_train.evaluation import evaluate
from aer_train.evaluation import folder as eval_run
from aer_train.evaluation.folder import evaluate_model

CONFIG = TrainConfig(
    rollout=RolloutConfig(max_new_tokens=6),
    reward=RewardConfig(kind="countdown"),
    eval=EvalConfig(data="builtin:countdown", samples=5, limit=8),
    run=RunConfig(threads=1),
)
MODEL = "builtin:countdown"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "CHUNK", 10)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation from beginning to end: 8 problems, 5 samples, 4 chunks."""
    out = tmp_path_factory.mktemp("eval") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "CHUNK", 10)
        evaluate_model(MODEL, CONFIG, out)
    return out


@pytest.mark.slow
def test_numbers_can_be_computed_again_from_the_samples(whole: Path) -> None:
    result = json.loads((whole / "eval.json").read_text())
    rows = pq.read_table(whole / "samples" / "data").to_pylist()
    assert len(rows) == 40 and sorted(path.name for path in (whole / "samples" / "data").iterdir())[-1] == "0003.parquet"
    correct: dict[str, dict[str, int]] = defaultdict(Counter)
    for row in rows:
        digits, target = row["answer"].split("=")
        text = row["response"]
        used = sorted(text[::2]) == sorted(digits) and all(c in "+-*" for c in text[1::2]) and len(text) == 5
        correct[row["tier"]][row["problem_id"]] += used and eval(text) == int(target)
    assert 0 < sum(correct["easy"].values()) < 20, "the numbers say something"
    for tier, found in correct.items():
        numbers = result["tiers"][tier]
        assert numbers["accuracy"] == pytest.approx(sum(found.values()) / 20)
        for k in range(1, 6):
            assert numbers["pass@k"][str(k)] == pytest.approx(sum(1 - comb(5 - c, k) / comb(5, k) for c in found.values()) / 4)
    assert {p["id"]: p["correct"] for p in result["problems"]} == {i: c for found in correct.values() for i, c in found.items()}


def test_what_a_person_reads(whole: Path) -> None:
    text = (whole / "eval.md").read_text()
    accuracy = json.loads((whole / "eval.json").read_text())["tiers"]["easy"]
    low, high = accuracy["accuracy_interval"]
    assert f"| easy | avg@5 | {accuracy['accuracy']:.3f} | {low:.3f}..{high:.3f} |" in text
    assert "| data | builtin:countdown | test | - | 8 |" in text
    assert (whole / "pass_at_k.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[str] = []
    real = eval_run.write_parquet

    def stopping(path: Path, rows: list[dict[str, Any]]) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(eval_run, "write_parquet", stopping)
        with pytest.raises(KeyboardInterrupt):
            evaluate_model(MODEL, CONFIG, tmp_path / "out")
    assert not (tmp_path / "out" / "eval.json").exists()
    monkeypatch.setattr(eval_run, "write_parquet", lambda path, rows: (written.append(path.name), real(path, rows)))
    evaluate_model(MODEL, CONFIG, tmp_path / "out")
    assert written == ["0000.parquet", "0001.parquet", "0002.parquet", "0003.parquet"], "nothing is sampled twice"
    assert "has 20 of 40 responses" in capsys.readouterr().out
    for path in whole.rglob("*"):
        assert path.is_dir() or (tmp_path / "out" / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name


def test_a_folder_belongs_to_one_evaluation(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--out must be a new folder or one of the same evaluation, got .*whole with samples 5$"):
        evaluate_model(MODEL, TrainConfig(**{**vars(CONFIG), "eval": EvalConfig(data=MODEL, samples=4, limit=8)}), whole)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"--out must be a new folder or one of the same evaluation, got .*full with other files"):
        evaluate_model(MODEL, CONFIG, tmp_path / "full")
    with pytest.raises(ValueError, match=r"--out must be a folder \(the result will be its eval.json\), got e.json"):
        evaluate_model(MODEL, CONFIG, Path("e.json"))


def test_what_cannot_be_evaluated(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"--data or --suites must be given when the settings name no eval.data or eval.suites, got neither"
    ):
        evaluate_model(str(model_folder), TrainConfig(), tmp_path / "out")
    with pytest.raises(ValueError, match=r"--model must be a folder that exists, or a hub id together with --data or --suites, got r/none"):
        evaluate_model("r/none", TrainConfig(), tmp_path / "out")
    with pytest.raises(ValueError, match=r"model.name must be an existing folder or a Hugging Face model id, got './none'"):
        evaluate_model("./none", TrainConfig(), tmp_path / "out")
    (tmp_path / "run" / "checkpoints" / "step_000001").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"--model must be a run with a complete checkpoint, got .*run"):
        evaluate_model(str(tmp_path / "run"), CONFIG, tmp_path / "out")


def test_without_matplotlib_there_is_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    evaluate_model(MODEL, CONFIG, tmp_path / "out")
    assert not (tmp_path / "out" / "pass_at_k.png").exists() and (tmp_path / "out" / "eval.json").is_file()
    assert 'plots need: pip install "aer-rl[report]"' in capsys.readouterr().out
