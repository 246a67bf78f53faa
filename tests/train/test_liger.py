"""Liger's kernels in the layers: the real ones, in Triton's interpreter. Logits, gradients and shared prompts are those of the plain model."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from aer_train.config.tree import ModelConfig
from aer_train.model import Policy, load_policy
from aer_train.model.liger import use_liger

pytestmark = pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel")

IDS = torch.tensor([[3, 4, 5, 9, 2, 8], [7, 7, 11, 4, 6, 2]])
SEGMENTS, POSITIONS = torch.tensor([[0, 0, 1, 1, 2, 2]] * 2), torch.tensor([[0, 1, 2, 3, 2, 3]] * 2)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A number that is given to a kernel is a float32 on a GPU; the interpreter leaves it Python's, and knows no rsqrt of libdevice.

    What Liger changes in the family's code is put back.
    """
    import liger_kernel.transformers.monkey_patch  # noqa: F401
    import triton.language as tl
    from transformers.models.qwen3 import modeling_qwen3
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def as_on_a_gpu(value: object) -> object:
        if isinstance(value, float):
            return tl.tensor(interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)
        return convert(value)

    monkeypatch.setattr(interpreter, "_implicit_cvt", as_on_a_gpu)
    monkeypatch.setattr(sys.modules["liger_kernel.ops.rms_norm"], "rsqrt", lambda x: 1.0 / tl.sqrt(x))
    for name in ("apply_rotary_pos_emb", "Qwen3RMSNorm", "Qwen3MLP"):
        monkeypatch.setattr(modeling_qwen3, name, getattr(modeling_qwen3, name))
    yield


@pytest.fixture
def sharing(model_folder: Path) -> Policy:
    return load_policy(ModelConfig(name=str(model_folder), share_prompts=True), torch.device("cpu"))


def passes(policy: Policy) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Hidden states of sequences alone and with a shared prompt, and gradients of all parameters."""
    policy.model.zero_grad()
    found = torch.cat([policy.hidden(IDS, torch.ones_like(IDS)), policy.hidden_shared(IDS, SEGMENTS, POSITIONS)])
    policy.head(found).logsumexp(-1).sum().backward()
    return found.detach(), [parameter.grad.clone() for parameter in policy.model.parameters()]


@pytest.mark.slow
def test_gradients_are_those_of_the_plain_layers(sharing: Policy) -> None:
    from transformers.models.qwen3 import modeling_qwen3

    states, gradients = passes(sharing)
    plain = modeling_qwen3.apply_rotary_pos_emb
    forward = type(sharing.model).forward
    use_liger(sharing, "tiny")
    names = [type(module).__name__ if "forward" not in vars(module) else module._get_name() for module in sharing.model.modules()]
    assert names.count("LigerRMSNorm") == 9 and names.count("LigerSwiGLUMLP") == 2, "two layers of four norms, and the last one"
    assert modeling_qwen3.apply_rotary_pos_emb is not plain
    assert sharing.model.forward.__func__ is forward, "Liger's loss is not in it"
    found, theirs = passes(sharing)
    torch.testing.assert_close(found, states, rtol=1e-4, atol=1e-5)
    for a, b in zip(theirs, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_a_model_that_liger_does_not_know_is_refused(sharing: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing.model.config, "model_type", "mine")
    with pytest.raises(ValueError, match=r"model.liger must be False for 'tiny', whose kind mine Liger does not know, got True"):
        use_liger(sharing, "tiny")


def test_other_logits_are_refused(sharing: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a family whose norm Liger takes for another."""
    from liger_kernel.transformers import monkey_patch

    @torch.no_grad()
    def wrong(model: torch.nn.Module, **options: bool) -> None:
        model.get_input_embeddings().weight.add_(0.1)

    monkeypatch.setattr(monkey_patch, "_apply_liger_kernel_to_instance", wrong)
    with pytest.raises(
        ValueError, match=r"model.liger must be False for 'tiny', got True: its logits with Liger differ by .* of the largest"
    ):
        use_liger(sharing, "tiny")
