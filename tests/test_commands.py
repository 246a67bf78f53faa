"""Every command of the repository says what it takes."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("aer_kernels", "aer_train", "benchmarks", "study", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if "ArgumentParser(" in path.read_text() and path.name != "cli.py"
)
COMMANDS.append("aer_train/__main__.py")  # cli.py is called by this


def test_there_are_commands():
    assert {"benchmarks/trainer/__main__.py", "study/__main__.py", "examples/plain_loop.py"} < set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("file", COMMANDS)
def test_help(file, monkeypatch, capsys):
    pytest.importorskip("aer_train.trainer", reason="the train extra is not installed")
    monkeypatch.setattr(sys, "argv", [file, "--help"])
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / file), run_name="__main__")
    assert not end.value.code and "usage:" in capsys.readouterr().out
