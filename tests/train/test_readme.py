"""The README's example of the fused loss in a foreign training loop runs as it is printed."""

import re
from pathlib import Path
from types import SimpleNamespace

import torch

from aer_kernels.plan import plan_policy_loss
from aer_train.cli import main
from aer_train.presets import PRESETS
from aer_train.tasks.warmup import build_model

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_foreign_training_loop():
    code = re.search(r"## The fused loss in your own training loop\n\n```python\n(.*?)```", README, re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 13
    torch.manual_seed(0)
    model = build_model()
    mask = torch.ones(4, 12, dtype=torch.long)
    mask[1, 9:] = 0
    batch = SimpleNamespace(
        ids=torch.randint(2, 17, (4, 12)), mask=mask, loss_mask=mask * (torch.arange(12) > 5), advantages=torch.tensor([1.0, -1.0, 0.5, -0.5]),
        group_accuracy=torch.tensor([0.5, 0.0]), prompt_of_row=torch.tensor([0, 0, 1, 1]),
    )  # fmt: skip
    before = model.lm_head.weight.detach().clone()
    scope = {"rollouts": [batch] * 3, "model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3)}
    exec(code, scope)
    assert not torch.equal(before, model.lm_head.weight)
    assert scope["ctl"].initial_entropy > 1.0 and torch.isfinite(scope["out"].loss)


def test_readme_names_commands_and_presets_that_exist(monkeypatch, capsys):
    """Every preset is dry-run, the big ones too, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert set(re.findall(r"aer-train (\w+)", README)) <= {"demo", "train", "eval", "compare", "grade", "report", "doctor"}
    assert set(re.findall(r"--preset (\w+)", README)) <= set(PRESETS)
    for preset in PRESETS:
        assert main(["train", "--preset", preset, "--dry-run"]) == 0
        assert "predicted memory of" in capsys.readouterr().out


def test_printed_plan():
    assert str(plan_policy_loss(65536, 151936, 4096)) in README
