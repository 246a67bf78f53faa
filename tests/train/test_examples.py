"""The examples run as they are printed, for a few steps, and do what they say."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

from aer_kernels import EXPLORE_THEN_SETTLE, AdaptiveEntropyController, PolicyLossOutput
from aer_train.tasks.countdown import solutions

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STEPS = 3


@pytest.fixture
def plain_loop() -> ModuleType:
    spec = spec_from_file_location("plain_loop", EXAMPLES / "plain_loop.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, float]], float, list[float]]:
    """The rows of a run of its main, with 16 held-out prompts; how far the farthest weight moved; the mean coefficient of each update."""
    seen, coefs = [], []
    train, loss = example.train, example.fused_policy_loss

    def watched(model: torch.nn.Module, *args: object) -> None:
        before = [parameter.detach().clone() for parameter in model.parameters()]
        rows = train(model, *args)
        moved = max(float((a - b.detach()).abs().max()) for a, b in zip(before, model.parameters(), strict=True))
        seen.append((rows, moved, coefs))

    def watched_loss(*args: torch.Tensor, entropy_coef: torch.Tensor, **options: torch.Tensor) -> PolicyLossOutput:
        coefs.append(float(entropy_coef.mean()))
        return loss(*args, entropy_coef=entropy_coef, **options)

    make_prompts = example.make_prompts
    monkeypatch.setattr(example, "make_prompts", lambda task, split, count=16, seed=0: make_prompts(task, split, count, seed))
    monkeypatch.setattr(example, "train", watched)
    monkeypatch.setattr(example, "fused_policy_loss", watched_loss)
    monkeypatch.setattr(sys, "argv", ["plain_loop.py", "--steps", str(STEPS), "--seed", "3"])
    example.main()
    monkeypatch.undo()
    return seen[0]


def test_plain_loop_trains(plain_loop: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows, moved, coefs = run(plain_loop, monkeypatch)
    assert len(rows) == STEPS and all(math.isfinite(value) for row in rows for value in row.values())
    assert all(0 <= row[tier] <= 1 for row in rows for tier in ("easy", "hard")) and rows[0]["easy"] > 0.5
    assert moved > 1e-4, "an AdamW step at 2e-4 moves some weight by about as much"
    controller = AdaptiveEntropyController(replace(EXPLORE_THEN_SETTLE, updates=STEPS))
    for row in rows:
        assert row["coef"] == controller.alpha
        controller.update(row["entropy"], 1)
        assert row["target"] == controller.target
    assert rows[0]["coef"] == 0 < rows[1]["coef"], "the target lies above the start"
    by_step = torch.tensor(coefs).view(STEPS, plain_loop.UPDATES).mean(1)
    torch.testing.assert_close(by_step, torch.tensor([row["coef"] for row in rows]))  # the weights of the prompts have mean 1
    last, held_out = capsys.readouterr().out.splitlines()
    assert last.startswith(f"step   {STEPS}  easy ") and held_out.startswith("held-out accuracy  easy ")
    again, *_ = run(plain_loop, monkeypatch)
    assert again == rows, "the seed fixes the run"


def test_plain_loop_masks_what_was_sampled(plain_loop: ModuleType) -> None:
    """Also where responses end early: the end of sequence counts, what comes after it does not; the first of each group is right."""
    tokenizer = plain_loop.AutoTokenizer.from_pretrained(plain_loop.COUNTDOWN_POLICY)
    prompts = plain_loop.make_prompts(plain_loop.COUNTDOWN, "test", 3)
    problems = [prompt.answer.split("=") for prompt in prompts]
    right = [solutions((tuple(sorted(map(int, digits))), int(target)))[0] for digits, target in problems]
    answers = [answer for solution in right for answer in (solution, "1+2", "", *["12-3*4"] * (plain_loop.GROUP - 3))]
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    written = [[*tokenizer(answer).input_ids, end][:6] for answer in answers]

    class Writer:
        def generate(self, ids: torch.Tensor, **options: object) -> torch.Tensor:
            ids = ids.repeat_interleave(plain_loop.GROUP, 0)
            return torch.cat([ids, torch.tensor([tokens + [pad] * (6 - len(tokens)) for tokens in written])], 1)

    tokens, mask, rewards = plain_loop.sample(Writer(), tokenizer, prompts)
    assert mask.shape == (len(answers), tokens.shape[1] - 1)
    assert [row[keep].tolist() for row, keep in zip(tokens[:, 1:], mask, strict=True)] == written
    assert rewards.tolist() == [[1.0] + [0.0] * (plain_loop.GROUP - 1)] * 3
