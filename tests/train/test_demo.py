"""The demo: two runs that differ in the entropy term alone, and a table made of their records."""

import json
import os
import re
import sys
import time

import pytest

from aer_train import demo
from aer_train.cli import main

pytest.importorskip("matplotlib", reason="the report extra is not installed")

CHILD = """
import json, os, sys, time
from pathlib import Path
out, hard, entropy, barrier = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
(out / "eval").mkdir(parents=True)
(out / "config.json").write_text("{}")
(barrier / str(os.getpid())).touch()
deadline = time.monotonic() + 20
while len(list(barrier.iterdir())) < 2 and time.monotonic() < deadline:
    time.sleep(0.01)
for step, share in ((0, 0.0), (2, hard)):
    tiers = {t: {"problems": 8, "accuracy": v, "truncated_frac": 0.0, "pass@k": {"1": v, "4": v}} for t, v in (("easy", 0.5), ("hard", share))}
    (out / "eval" / f"step_{step:06d}.json").write_text(json.dumps({"tiers": tiers}))
for step, value in ((1, 0.5), (2, entropy)):
    row = {"step": step, "reward/mean": 0.5, "entropy/mean": value, "entropy/coef": 0.0, "perf/tokens_per_second": 100.0}
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\\n")
"""


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Runs that take no time and end with known numbers; each waits for the other, so that one after the other would be slow."""
    (tmp_path / "barrier").mkdir()

    def command(folder, kind, *_):
        hard, entropy = {"off": ("0.125", "0.2"), "aer": ("0.625", "0.4")}[kind]
        return [sys.executable, "-c", CHILD, str(folder), hard, entropy, str(tmp_path / "barrier")]

    monkeypatch.setattr(demo, "_command", command)
    monkeypatch.setattr(demo, "_cores", lambda: 2)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.slow
def test_table_comes_from_the_records(fake, tmp_path, capsys):
    """Entropy kept: (0.5 + 0.2) / 2 / 0.5 = 70 % and (0.5 + 0.4) / 2 / 0.5 = 90 %."""
    started = time.monotonic()
    demo.run_demo(tmp_path / "out", steps=2)
    shown = capsys.readouterr().out
    assert time.monotonic() - started < 15, "the runs went one after the other"
    rows = {cells[0]: cells[1:] for line in shown.splitlines() if (cells := [cell.strip() for cell in re.findall(r"│([^│]*)(?=│)", line)])}
    assert rows == {
        "before": ["0.500", "0.500", "0.000", "0.000", "100%"],
        "GRPO": ["0.500", "0.500", "0.125", "0.125", "70%"],
        "AER": ["0.500", "0.500", "0.625", "0.625", "90%"],
    }
    assert "0.0% before, 12.5% with plain GRPO, 62.5% with AER" in shown
    assert f"report  {tmp_path / 'out' / 'report.html'}" in shown
    assert "<h1>grpo / aer</h1>" in (tmp_path / "out" / "report.html").read_text()


def test_a_failed_run_is_told_and_ends_the_other(monkeypatch, tmp_path, capsys):
    def command(folder, kind, *_):
        fail = "print('[bold]it broke[/bold]'); raise SystemExit(3)"
        wait = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
        late = f"import os, time\nwhile not os.path.getsize({str(tmp_path / 'pid')!r}): time.sleep(0.01)\n"
        return [sys.executable, "-c", wait if kind == "aer" else late + fail]

    (tmp_path / "pid").touch()
    monkeypatch.setattr(demo, "_command", command)
    monkeypatch.setattr(demo, "_cores", lambda: 2)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert "[bold]it broke[/bold]" in told.out
    assert told.err == f"error: run grpo failed with exit code 3; its log is {tmp_path / 'out' / 'grpo.log'}\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_runs_differ_in_the_entropy_term_alone(tmp_path):
    grpo, aer = (demo._command(tmp_path / "run", kind, "builtin:countdown", 7, 3) for kind in demo.RUNS.values())
    assert [(a, b) for a, b in zip(grpo, aer, strict=True) if a != b] == [("--method.kind=off", "--method.kind=aer")]
    assert {"--preset", "countdown", "--run.steps=7", "--run.seed=3", "--run.threads=1"} <= set(grpo)


@pytest.mark.slow
def test_commands_are_understood(tmp_path, capsys):
    """The command line takes what the demo gives it, and reads it as meant."""
    for name, kind in demo.RUNS.items():
        assert main([*demo._command(tmp_path / name, kind, "builtin:countdown", 7, 3)[3:], "--dry-run"]) == 0
        config = json.JSONDecoder().raw_decode(capsys.readouterr().out)[0]
        assert (config["method"]["kind"], config["run"]["steps"], config["run"]["out"]) == (kind, 7, str(tmp_path / name))


def test_a_row_that_is_being_written_is_not_read(tmp_path):
    child = demo.Child("aer", tmp_path, [])
    assert child.last_row() is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    assert child.last_row() == {"step": 1}
    (tmp_path / "metrics.jsonl").write_text('{"st')
    assert child.last_row() is None


def test_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"out must not exist yet, got .* \(choose another with --out\)"):
        demo.run_demo(tmp_path)
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        demo.run_demo(tmp_path / "out", steps=0)
    assert not (tmp_path / "out").exists()
