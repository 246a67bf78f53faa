import json
import subprocess
import sys
from pathlib import Path

import pytest

from aer_kernels import __version__
from aer_train import __main__ as command
from aer_train.cli import main
from aer_train.config.tree import EvalConfig
from aer_train.run.folder import read_config, read_evals, read_metrics
from tests.train.problems import row, write_rows


def tiny(model_folder: Path, run: Path) -> list[str]:
    flags = (
        "--preset countdown --rollout.group-size 4 --optim.prompts-per-step 4 --run.threads 1 --run.steps 2 --eval.samples 2 --eval.limit 4"
    )
    return ["train", *flags.split(), "--model.name", str(model_folder), "--run.out", str(run)]


@pytest.mark.slow
def test_train_resume_eval_and_report(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the report needs matplotlib")
    run = tmp_path / "run"
    assert main(tiny(model_folder, run)) == 0
    assert (run / "report.html").is_file() and "report: " in capsys.readouterr().out
    assert list(read_evals(run)) == [0, 2] and read_config(run)["optim"]["prompts_per_step"] == 4
    assert main(["train", "--resume", str(run), "--run.steps", "3"]) == 0
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3]
    assert list(read_evals(run)) == [0, 2, 3] and read_config(run)["run"]["steps"] == 3
    capsys.readouterr()
    assert main(["eval", "--model", str(run), "--out", str(tmp_path / "e")]) == 0
    result, trained = json.loads((tmp_path / "e" / "eval.json").read_text()), read_evals(run)[3]
    assert result["model"].endswith("step_000003") and result["samples"] == 2 and result["tiers"]["all"]["problems"] == 4
    assert all(result[name] == trained[name] for name in ("tiers", "mean", "problems", "data")), "the same as at the end of training"
    assert "pass@2" in capsys.readouterr().out
    assert main(["compare", str(run), str(tmp_path / "e"), "--out", str(tmp_path / "compared")]) == 0
    compared = json.loads((tmp_path / "compared" / "compare.json").read_text())
    assert compared["tiers"]["all"]["difference"]["accuracy_interval"] == [0.0, 0.0]
    assert main(["report", str(run), "--out", str(tmp_path / "overlay")]) == 0
    assert (tmp_path / "overlay" / "report.html").is_file()


@pytest.mark.slow
def test_the_revision_of_a_run_is_not_that_of_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EvalConfig] = []
    monkeypatch.setattr("aer_train.evaluation.folder.evaluate_model", lambda model, config, out: seen.append(config.eval))
    (tmp_path / "config.toml").write_text('[eval]\ndata = "org/a"\nrevision = "abc"\nsuites = ["aime24"]')
    for args in ([], ["--data", "org/a"], ["--data", "org/b"], ["--data", "org/b", "--eval.revision", "def"], ["--suites", "gsm8k"]):
        assert main(["eval", "--model", "m", "--config", str(tmp_path / "config.toml"), *args]) == 0
    assert [(e.data, e.revision, e.suites) for e in seen] == [
        ("org/a", "abc", ("aime24",)), ("org/a", "abc", ()), ("org/b", None, ()), ("org/b", "def", ()), (None, "abc", ("gsm8k",)),
    ]  # fmt: skip


@pytest.mark.slow
def test_dry_run_shows_everything_and_writes_nothing(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*tiny(model_folder, tmp_path / "run"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    shown = json.loads(text[: text.index("\npredicted memory")])
    assert shown["rollout"]["group_size"] == 4 and shown["run"]["out"] == str(tmp_path / "run")
    assert "AdamW moments (float32)" in text and "float32 logits" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fly"], "error: command must be one of demo, train, eval, merge, compare, grade, report, doctor, got 'fly'\n"),
        (["train", "--preset", "chess"], "error: --preset must be one of countdown, gsm8k, qwen3_4b_dapo, qwen3_8b_dapo, got 'chess'\n"),
        (["train", "--optim.lrr", "1"], "error: Unrecognized options: --optim.lrr, 1 (perhaps --optim.lr)\n"),
        (["train", "--rollout.group-size", "1"], "error: rollout.group_size must be >= 2, got 1\n"),
        (["train", "--model.name", "./none"], "error: model.name must be an existing folder or a Hugging Face model id, got './none'\n"),
        (["train", "--resume", "none"], "error: run folder must hold a config.json, got none\n"),
        (
            ["eval", "--model", "r/none"],
            "error: --model must be a folder that exists, or a hub id together with --data or --suites, got r/",
        ),
        (["train", "--preset"], "error: argument --preset: expected one argument\n"),
        (["eval"], "error: Missing from aer-train eval: --model STR"),
        (["eval", "--model", "builtin:countdown", "--suites", "aime"], "error: suites must be of aime24, aime25,"),
        (["compare", "a"], "error: compare must be given two evaluations, got 1\n"),
        (["report"], "error: report must be given at least one run folder, got none\n"),
    ],
)
def test_user_errors_are_one_line(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    found = capsys.readouterr().err
    assert found.startswith(message) and found.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_resume_takes_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run" / "checkpoints" / "step_000002"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    (folder / "config.json").write_text('{"architectures": []}')
    assert main(["train", "--resume", str(folder)]) == 2
    assert f"--resume must name the run folder, {tmp_path / 'run'}, got its checkpoint {folder}\n" in capsys.readouterr().err


def test_resume_keeps_its_folder(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["train", "--resume", str(tmp_path), "--run.out", "elsewhere"]) == 2
    assert "run.out must not be given together with --resume, got elsewhere" in capsys.readouterr().err


@pytest.mark.slow
def test_doctor(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model.name", str(model_folder), "--optim.tokens-per-microbatch", "1024"]) == 0
    lines = dict(line.strip().split("  ", 1) for line in capsys.readouterr().out.splitlines() if line.startswith("  "))
    parameters = 17 * 32 + 2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 64 + 2 * 8 + 2 * 32) + 32
    assert lines["parameters (float32)"].strip() == f"{4 * parameters / 2**20:,.1f} MiB"
    assert lines["not needed: float32 logits of the loss"].strip() == f"{4 * 1024 * 17 / 2**20:,.1f} MiB"
    assert {"python", "torch", "GPU", "CPU", "extra report"} <= lines.keys()
    assert {"activations of 1,024 tokens", "rollout cache, 256 responses to the longest prompts"} <= lines.keys()
    assert main(["doctor", "--model.name", str(model_folder)]) == 0
    assert "activations of 16,384 tokens" in capsys.readouterr().out, "as a run would choose"


def test_without_its_extra_the_command_names_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "aer_train.cli")
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert command.main() == 2
    assert capsys.readouterr().err == 'error: aer-train needs: pip install "aer-rl[train]" (no module tyro)\n'
    monkeypatch.setitem(sys.modules, "aer_train.config.parse", None)
    monkeypatch.delitem(sys.modules, "tyro")
    with pytest.raises(ModuleNotFoundError, match=r"aer_train\.config\.parse"):  # a fault of the package is no missing extra
        command.main()


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0 and "aer-train COMMAND" in capsys.readouterr().out
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"aer-train {__version__}\n"
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--method.tau" in text and "Target as a share of the initial entropy" in text


@pytest.mark.slow
def test_help_needs_no_heavy_import() -> None:
    code = "import sys, aer_train.cli as c; c.main([]); print([m for m in ('transformers', 'datasets', 'matplotlib', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_three_steps_on_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Word problems through a byte-level tokenizer and random weights: the path of any real model."""
    from tests.train.conftest import save_byte_model

    save_byte_model(tmp_path / "model")
    rows = [row("gsm8k", number) for number in range(210)]
    data = write_rows(tmp_path / "gsm8k.jsonl", rows)
    prompts = {r["id"]: f"<|system|>Answer with a number.<|user|>{r['problem']}<|assistant|>" for r in rows[:200]}
    longer = {name for name, prompt in prompts.items() if len(prompt.encode()) > 400}
    assert 0 < len(longer) < 200, "some of both"
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
        [model]
        name = "{tmp_path / "model"}"
        [data]
        train = "{data}"
        limit = 200
        chat = true
        system = "Answer with a number."
        max_prompt_tokens = 400
        [rollout]
        group_size = 4
        max_new_tokens = 24
        [objective]
        clip_high = 0.28
        [optim]
        lr = 1e-3
        prompts_per_step = 6
        tokens_per_microbatch = 2048
        loss_memory_mib = 8
        [run]
        out = "{tmp_path / "run"}"
        steps = 3
        threads = 1
        """
    )
    assert main(["train", "--config", str(config), "--method.target", "6"]) == 0
    assert f"{len(longer)} of 200 prompts dropped (data.max_prompt_tokens)" in capsys.readouterr().out
    rows = read_metrics(tmp_path / "run")
    assert len(rows) == 3 and rows[2]["entropy/coef"] > 0 and rows[2]["optim/grad_norm"] > 0
    assert rows[0]["rollout/mismatch_mean"] < 1e-4
    import pyarrow.parquet as pq

    samples = pq.read_table(tmp_path / "run" / "samples" / "step_000001.parquet").to_pylist()
    assert len(samples) == 24 and longer.isdisjoint(sample["prompt_id"] for sample in samples)
    assert all(sample["prompt"] == prompts[sample["prompt_id"]] for sample in samples)
