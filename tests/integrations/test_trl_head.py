"""The fused head in place of TRL's: the same numbers, more exact ones from bf16, in several trainers, and gone afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the trl extra is not installed")

from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils as trl_utils

from aer_kernels.integrations import guard, trl_head
from aer_kernels.integrations.trl_head import AERHead, use_aer_head
from aer_kernels.testing import head_inputs
from aer_train.model import COUNTDOWN_POLICY
from tests.integrations.trl_setup import model

pytestmark = pytest.mark.slow

CHUNK = 32_768


def results(head: Any, x: Any, dtype: torch.dtype, bias: torch.Tensor | None, *rest: Any) -> list[torch.Tensor]:
    """Log-probs, entropies and all gradients for given upstream gradients."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in (x.hidden, x.weight, *([] if bias is None else [bias]))]
    logprobs, entropy, *_ = head.apply(*leaves[:2], leaves[2] if bias is not None else None, x.targets, *rest, ("log_probs", "entropy"))
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(len(x.targets), generator=generator).to(logprobs.dtype) for _ in range(2)]
    torch.autograd.backward([logprobs, entropy], upstream)
    return [logprobs.detach(), entropy.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("temperature", "softcap", "scale"), [(1.0, None, 1.0), (0.7, None, 0.25), (1.3, 20.0, 1.0), (0.7, 30.0, 3.0)])
def test_the_numbers_are_trls(with_bias: bool, temperature: float, softcap: float | None, scale: float) -> None:
    x = head_inputs(96, 1000, 64, dtype=torch.float32, device=torch.device("cpu"), seed=3, peak=9.0)
    bias = torch.randn(1000, generator=torch.Generator().manual_seed(2)) if with_bias else None
    rest = (temperature, CHUNK, softcap, scale)
    for ours, theirs in zip(
        results(AERHead, x, torch.float32, bias, *rest), results(ChunkedLogProbFunction, x, torch.float32, bias, *rest), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-5 * float(theirs.abs().max()))


def test_it_is_more_exact_from_bf16() -> None:
    """Against float64 on the same rounded inputs: values a thousand times, and gradients no worse."""
    x = head_inputs(128, 4000, 128, dtype=torch.bfloat16, device=torch.device("cpu"), seed=0, peak=11.0)
    rest = (1.0, CHUNK, None, 1.0)
    truth = results(AERHead, x, torch.float64, None, *rest)
    ours, theirs = (results(head, x, torch.bfloat16, None, *rest) for head in (AERHead, ChunkedLogProbFunction))
    errors = [
        [float((found.double() - exact).norm() / exact.norm()) for found, exact in zip(part, truth, strict=True)] for part in (ours, theirs)
    ]
    for ours_error, theirs_error in zip(*(part[:2] for part in errors), strict=True):
        assert ours_error < 1e-3 * theirs_error
    for ours_error, theirs_error in zip(*(part[2:] for part in errors), strict=True):
        assert ours_error < theirs_error


def test_autocast_is_trls() -> None:
    """Under autocast the head works on what autocast would give it, whatever the dtype of the parameters."""
    x = head_inputs(32, 300, 32, dtype=torch.float32, device=torch.device("cpu"), seed=0, peak=8.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = AERHead.apply(x.hidden, x.weight, None, x.targets, 1.0, CHUNK, None, 1.0, ("log_probs", "entropy"))
    rounded = AERHead.apply(x.hidden.bfloat16(), x.weight.bfloat16(), None, x.targets, 1.0, CHUNK, None, 1.0, ("log_probs",))
    assert torch.equal(found[0], rounded[0]) and rounded[1] is None and found[0].dtype == torch.float32


def sft(folder: Path, **changes: Any) -> Any:
    rows = [{"prompt": f"{a}{b}2=1{a}?", "completion": f"{a}+{b}+2"} for a in range(1, 5) for b in range(1, 5)]
    return trainer(SFTTrainer, SFTConfig, folder, rows, **changes)


def dpo(folder: Path, **changes: Any) -> Any:
    rows = [{"prompt": f"{a}{b}2=1{a}?", "chosen": f"{a}+{b}+2", "rejected": f"{a}*{b}+2"} for a in range(1, 5) for b in range(1, 5)]
    return trainer(DPOTrainer, DPOConfig, folder, rows, **changes)


def kto(folder: Path, **changes: Any) -> Any:
    rows = [{"prompt": f"{a}{b}2=1{a}?", "completion": f"{a}+{b}+2", "label": b % 2 == 0} for a in range(1, 5) for b in range(1, 5)]
    return trainer(KTOTrainer, KTOConfig, folder, rows, **changes)


def trainer(cls: Any, config: Any, folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Any:
    settings = {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
    }
    settings |= {
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "output_dir": str(folder),
    }
    tokenizer = AutoTokenizer.from_pretrained(COUNTDOWN_POLICY)
    made = cls(model=model(), args=config(**(settings | changes)), train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    made.remove_callback(PrinterCallback)
    return made


@pytest.mark.parametrize("make", [sft, dpo, kto])
def test_other_trainers_train_the_same(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and logged numbers agree with TRL's head, the head was used, and it is gone afterwards."""
    plain = make(tmp_path)
    plain.train()
    calls: list[int] = []
    apply = AERHead.apply
    monkeypatch.setattr(AERHead, "apply", staticmethod(lambda *args: calls.append(1) or apply(*args)))
    ours = make(tmp_path)
    with use_aer_head():
        ours.train()
    assert calls and trl_utils._ChunkedLogProbFunction is ChunkedLogProbFunction
    timings = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "step_time"}
    for before, after in zip(plain.state.log_history, ours.state.log_history, strict=True):
        assert {k: v for k, v in after.items() if k not in timings} == pytest.approx(
            {k: v for k, v in before.items() if k not in timings}, rel=1e-3, abs=1e-5
        )


def test_nothing_is_left_after_an_exception(tmp_path: Path) -> None:
    made = sft(tmp_path)
    made.compute_loss = None  # what a user's own error does
    with pytest.raises(TypeError), use_aer_head():
        made.train()
    assert trl_utils._ChunkedLogProbFunction is ChunkedLogProbFunction


def test_another_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other arguments, or a model that does not look the head up by name: an error before anything is patched."""

    def forward(ctx: Any, hidden: Any, weight: Any, targets: Any) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(ChunkedLogProbFunction, "forward", staticmethod(forward))
        with (
            pytest.raises(ImportError, match=r"head='aer' must be used with a tested version: .* takes \(hidden, weight, targets\) in TRL"),
            use_aer_head(),
        ):
            pass
    with monkeypatch.context() as patch:
        patch.setattr(trl_utils, "add_fused_lm_head", lambda model: ChunkedLogProbFunction)
        with pytest.raises(ImportError, match="does not look up its head by name"), use_aer_head():
            pass
    assert trl_utils._ChunkedLogProbFunction is ChunkedLogProbFunction


def test_what_the_head_cannot_do_is_refused() -> None:
    x = head_inputs(8, 30, 16, dtype=torch.float32, device=torch.device("cpu"), seed=0, peak=5.0)
    partitioned = torch.nn.Parameter(x.weight.clone())
    partitioned.ds_id = 0  # type: ignore[attr-defined]
    for weight, scale, message in ((partitioned, 1.0, "ZeRO-3"), (x.weight, 0.0, "logit scale"), (x.weight, -1.0, "logit scale")):
        with pytest.raises(ValueError, match=f"head must be 'trl' .*{message}"):
            AERHead.apply(x.hidden, weight, None, x.targets, 1.0, CHUNK, None, scale, ("log_probs",))


def test_an_old_trl_is_refused() -> None:
    for version in ("1.15.0", "0.29.1"):
        with pytest.raises(ImportError, match=f"trl must be 1.16 or newer, got {version}"):
            guard.check_version("trl", version, trl_head.OLDEST, None, "pip install it")
    for version in ("1.16.0", "1.17.0.dev0", "2.0"):
        guard.check_version("trl", version, trl_head.OLDEST, None, "pip install it")


def test_a_changed_trainer_is_refused() -> None:
    with pytest.raises(ImportError, match=r"AERGRPOTrainer must be used with a tested version: .* takes \(model, batch\) in TRL 9"):
        guard.check_parameters(lambda self, model, batch: None, ("model", "inputs"), "AERGRPOTrainer", "TRL 9")
