"""GPU lane: what a CPU has only in an interpreter or an unfused form. Compiled kernels of FlexAttention, torchao and Liger in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aer_train.config.tree import ModelConfig, OptimConfig
from aer_train.model import load_policy
from aer_train.run.folder import read_metrics
from aer_train.step.optimizer import make_optimizer
from aer_train.step.update import update_policy
from aer_train.trainer import train
from tests.train.same_run import changed
from tests.train.test_low_memory import config_of, parts_of
from tests.train.test_shared_prompts import ADVANTAGES, COEF, CONFIG, WIDE, groups, samples_of, states  # noqa: F401
from tests.train.worth import weighed

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]

CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 64: FlexAttention's kernels take none of 8."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from tests.train.conftest import save_tokenizer

    folder = tmp_path_factory.mktemp("wide_model")
    save_tokenizer(folder)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(vocab_size=17, head_dim=64, **sizes, eos_token_id=1, pad_token_id=0)).save_pretrained(folder)
    return folder


def test_flex_attention_has_the_mask_of_sdpa(wide_folder: Path, groups: list[Any]) -> None:  # noqa: F811
    dense = load_policy(ModelConfig(name=str(wide_folder), dtype="float32"), CUDA)
    flex = load_policy(ModelConfig(name=str(wide_folder), dtype="float32", attn_implementation="flex_attention"), CUDA)
    assert flex.shared is not None and flex.shared.attention == "flex_attention"
    batch = weighed(groups, ADVANTAGES, COEF, scale=0.3)
    found, expected = states(flex, samples_of(groups)), states(replace(dense, shared=WIDE), samples_of(groups))
    for row, value in expected.items():
        torch.testing.assert_close(found[row], value, rtol=1e-3, atol=1e-3)
    for one in (flex, dense):
        update_policy(one, torch.optim.SGD(one.model.parameters(), lr=1.0), batch, CONFIG, step=1)
    for a, b in zip(flex.model.parameters(), dense.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("param_dtype, state", [("bfloat16", "8bit"), ("bfloat16", "float32"), ("float32", "8bit")])
def test_a_run_with_less_memory_and_liger(tmp_path: Path, param_dtype: str, state: str) -> None:
    """It learns, and resumes to close numbers: a GPU sums in no fixed order."""
    pytest.importorskip("torchao")
    pytest.importorskip("liger_kernel")
    config = config_of(tmp_path, param_dtype, state)
    config = changed(changed(config, "model", liger=True), "run", device="cuda")
    whole = train(changed(config, "run", out=str(tmp_path / "whole")))
    run = train(changed(config, "run", steps=2))
    train(config, resume=True)
    (a, moments), (b, _) = parts_of(whole), parts_of(run)
    assert any(name.endswith(".codes") for name in moments) == (state == "8bit")
    for name, tensor in a.items():
        assert tensor.dtype == getattr(torch, param_dtype)
        torch.testing.assert_close(tensor.float(), b[name].float(), rtol=0.1, atol=0.02)
    assert all(np.isfinite(row["policy/loss"]) and row["optim/grad_norm"] > 0 for row in read_metrics(run))


def test_the_compiled_step_is_the_plain_one() -> None:
    """torchao compiles its step on a GPU, and is taken as written on a CPU."""
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    start, gradient = torch.randn(256, 256), torch.randn(256, 256)
    found = []
    for device in ("cpu", "cuda"):
        parameter = torch.nn.Parameter(start.to(device))
        optimizer = make_optimizer(OptimConfig(lr=1e-3, state="8bit"), [parameter])
        for _ in range(3):
            parameter.grad = gradient.to(device)
            optimizer.step() if device == "cuda" else _as_written(optimizer)
        found.append(parameter.detach().cpu())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def _as_written(optimizer: torch.optim.Optimizer) -> None:
    with torch.compiler.set_stance("force_eager"):
        optimizer.step()
