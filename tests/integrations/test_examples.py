"""The examples of the integrations run as they are printed, for a few steps, and their tables are what the runs did."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def table(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line.startswith("|")]


def test_trl_countdown(example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain and AER for every seed; AER's coefficient moves, and the two end with different weights."""
    pytest.importorskip("trl", reason="the trl extra is not installed")
    from tests.integrations.trl_setup import logged

    module = example("trl_countdown")
    made: list[Any] = []
    train = module.train
    monkeypatch.setattr(module, "train", lambda *args: made.append(train(*args)) or made[-1])
    monkeypatch.setattr(sys, "argv", ["trl_countdown.py", "--seeds", "0", "3", "--steps", "3", "--prompts", "16"])
    module.main()
    header, _, *rows = table(capsys.readouterr().out)
    assert header[:2] == ["method", "seed"] and [row[:2] for row in rows] == [
        [name, seed] for seed in ("0", "3") for name in ("plain GRPO", "AER")
    ]
    assert all(0 <= float(cell) <= 1 for row in rows for cell in row[2:6]) and all(float(row[2]) > 0.4 for row in rows)
    plain, aer = made[:2]
    assert aer.method.state_dict()["updates"] == 3 and logged(aer, "aer/coef")[0] > 0 and not logged(plain, "aer/coef")
    first, second = (torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) for trainer in (plain, aer))
    assert not torch.equal(first, second)


def test_entropy_advantages(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row a method; the bonus as advantages trains otherwise than plain GRPO, and a baseline leaves less noise than none."""
    module = example("entropy_advantages")
    terms: list[Any] = []
    real = module.Sampled.terms
    monkeypatch.setattr(module.Sampled, "terms", lambda self, tokens: terms.append(real(self, tokens)) or terms[-1])
    monkeypatch.setattr(sys, "argv", ["entropy_advantages.py", "--seeds", "0", "--steps", "3", "--samples", "1"])
    module.main()
    printed = capsys.readouterr().out
    noise = [float(line.rsplit(" ", 1)[1]) for line in printed.splitlines() if line.startswith("noise")]
    assert noise == sorted(noise, reverse=True) and len(noise) == 4
    header, _, *rows = table(printed)
    assert [row[0] for row in rows] == list(module.RUNS) and len(header) == len(rows[0])
    assert not terms[0].shift.any(), "the coefficient starts at 0"
    assert sum(bool(found.shift.any()) for found in terms) >= 3
