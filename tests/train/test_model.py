import json
import shutil
from pathlib import Path

import pytest
import torch

from aer_train.config.tree import ModelConfig
from aer_train.model import Policy, compute_dtype, load_policy, model_source, resolve_device
from tests.train.conftest import save_tokenizer

CPU = torch.device("cpu")
SMALL = {"vocab_size": 17, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_hidden_and_head_give_the_logits(policy: Policy) -> None:
    ids, mask = torch.randint(17, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    assert torch.allclose(policy.head(policy.hidden(ids, mask)), policy.model(input_ids=ids, attention_mask=mask).logits, atol=1e-6)
    assert policy.softcap is None and policy.eos_ids == {1} and policy.dtype == torch.float32


def test_dropout_is_off_and_gradients_are_on(policy: Policy) -> None:
    ids, mask = torch.randint(17, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    first, second = policy.hidden(ids, mask), policy.hidden(ids, mask)
    assert torch.equal(first, second) and first.requires_grad
    assert policy.model.config.attention_dropout == 0.1, "as published: it stays in the checkpoints"


def test_gradient_checkpointing_gives_the_same_gradient(policy: Policy, model_folder: Path) -> None:
    other = load_policy(ModelConfig(name=str(model_folder), gradient_checkpointing=True), CPU)
    ids, mask = torch.randint(17, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    for p in (policy, other):
        p.hidden(ids, mask).square().sum().backward()
    for a, b in zip(policy.model.parameters(), other.model.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)


@pytest.mark.parametrize(
    "family",
    [
        ("Qwen2Config", "Qwen2ForCausalLM", {"num_key_value_heads": 1}),
        ("LlamaConfig", "LlamaForCausalLM", {"num_key_value_heads": 1}),
        ("Gemma2Config", "Gemma2ForCausalLM", {"num_key_value_heads": 1, "head_dim": 8}),
        ("GPT2Config", "GPT2LMHeadModel", {"n_inner": 32}),
    ],
    ids=lambda family: family[1],
)
def test_other_families(tmp_path: Path, family: tuple[str, str, dict[str, int]]) -> None:
    import transformers

    config = getattr(transformers, family[0])(**SMALL, **family[2], eos_token_id=1, bos_token_id=1, pad_token_id=0)
    torch.manual_seed(0)
    getattr(transformers, family[1])(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    policy = load_policy(ModelConfig(name=str(tmp_path)), CPU)
    assert policy.softcap == (30.0 if family[0] == "Gemma2Config" else None)
    load_policy(ModelConfig(name=str(tmp_path), dtype="bfloat16", unpad=True), CPU)


def test_without_padding_states_and_gradients_are_the_same(policy: Policy, model_folder: Path) -> None:
    other = load_policy(ModelConfig(name=str(model_folder), unpad=True), CPU)
    torch.manual_seed(0)
    seen = []
    other.model.base_model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True)
    ids, lengths = torch.randint(17, (5, 9)), torch.tensor([9, 1, 4, 1, 6])
    mask = (torch.arange(9) < lengths[:, None]).long()
    states = [p.hidden(ids, mask) * mask[..., None] for p in (policy, other)]
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-5)
    assert seen == [(1, 21)], "no padding went through the layers"
    weights = torch.randn(states[0].shape)
    for state in states:
        (state * weights).sum().backward()
    for a, b in zip(policy.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-5 * max(1.0, float(b.grad.abs().max())))


def test_a_model_that_would_mix_the_samples_is_refused(tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    BloomForCausalLM(BloomConfig(vocab_size=17, hidden_size=16, n_layer=2, n_head=2)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    load_policy(ModelConfig(name=str(tmp_path)), CPU)
    with pytest.raises(ValueError, match=r"model.unpad must be False for .*, got True: its hidden states without padding differ by"):
        load_policy(ModelConfig(name=str(tmp_path), unpad=True), CPU)


def test_weights_that_are_not_finite_are_refused(policy: Policy, tmp_path: Path) -> None:
    with torch.no_grad():
        policy.model.model.layers[0].mlp.down_proj.weight[1, 2] = torch.nan
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model.name must be a model with finite weights, got .* whose logits are NaN or infinite"):
        load_policy(ModelConfig(name=str(tmp_path)), CPU)


def test_missing_pad_token_becomes_the_end_token(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_policy(ModelConfig(name=str(folder)), CPU).tokenizer.pad_token_id == 1


def test_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.name must be an existing folder .*, got './missing'"):
        model_source("./missing")
    with pytest.raises(ValueError, match=r"model.name must be builtin:countdown"):
        model_source("builtin:chess")
    with pytest.raises(ValueError, match=r"model.name must be a Hugging Face model id or folder, got "):
        load_policy(ModelConfig(name=str(tmp_path)), CPU)
    assert model_source("Qwen/Qwen3-4B-Base") == "Qwen/Qwen3-4B-Base"


def test_device_and_dtype() -> None:
    assert resolve_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert resolve_device("auto") == CPU
        with pytest.raises(ValueError, match=r"run.device must be auto or cpu"):
            resolve_device("cuda")
    assert compute_dtype("auto", CPU) == torch.float32
    assert compute_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert compute_dtype("bfloat16", CPU) == torch.bfloat16
