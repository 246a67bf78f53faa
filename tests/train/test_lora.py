"""LoRA: what is trained, sampled, served and saved, beside PEFT's own numbers; the reference of a KL penalty; resume; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aer_kernels import EntropyControlConfig
from aer_train.cli import main
from aer_train.config.tree import ModelConfig, ObjectiveConfig, RewardConfig, RolloutConfig, TrainConfig
from aer_train.doctor import predict_memory
from aer_train.model import Policy, load_policy, load_reference
from aer_train.model.lora import adapters_off, fold_adapters, served_parameters, served_tensors
from aer_train.rollout.hf import HFRollout
from aer_train.run import checkpoint
from aer_train.run.folder import read_metrics
from aer_train.trainer import train
from aer_train.types import Prompt
from tests.ranks import spawn
from tests.train.same_run import changed, stable_rows

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
IDS = torch.tensor([[3, 4, 5, 9, 2], [7, 7, 11, 4, 6]])


def options(folder: Path, **values: Any) -> ModelConfig:
    return ModelConfig(**{"name": str(folder), "lora_rank": 4, "lora_alpha": 8, **values})


def moved(policy: Policy) -> Policy:
    """As after some steps."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.fixture(params=["tied", "untied"])
def folder(request: pytest.FixtureRequest, model_folder: Path, untied_folder: Path) -> Path:
    return model_folder if request.param == "tied" else untied_folder


def logits(policy: Policy) -> torch.Tensor:
    return policy.head(policy.hidden(IDS, torch.ones_like(IDS)))


def test_only_adapters_move(folder: Path) -> None:
    policy, plain = load_policy(options(folder), CPU), load_policy(ModelConfig(name=str(folder)), CPU)
    names = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * 2 * 7 and all(".lora_" in name for name in names), "seven linear layers in each of two"
    assert torch.equal(logits(policy), logits(plain)), "B is 0"
    assert policy.shared is not None
    twin, third = load_policy(options(folder), CPU), load_policy(options(folder), CPU, seed=1)
    same = [[torch.equal(a, b) for a, b in zip(policy.model.parameters(), x.model.parameters(), strict=True)] for x in (twin, third)]
    assert all(same[0]) and not all(same[1])


def test_what_is_served_is_what_peft_merges(folder: Path) -> None:
    """By the names and shapes of the model without adapters, exactly, with the model untouched; the logits are those that train."""
    policy, plain = moved(load_policy(options(folder), CPU)), load_policy(ModelConfig(name=str(folder)), CPU)
    before = [parameter.clone() for parameter in policy.model.parameters()]
    served = dict(served_tensors(policy.model, torch.float32))
    expected = {name: parameter.shape for name, parameter in plain.model.named_parameters()}
    assert {name: tensor.shape for name, tensor in served.items()} == expected
    assert [(name, p.shape) for name, p, _ in served_parameters(policy.model)] == list(expected.items())
    assert all(torch.equal(a, b) for a, b in zip(policy.model.parameters(), before, strict=True))
    half = dict(served_tensors(policy.model, torch.bfloat16))
    assert all(torch.equal(half[name], tensor.bfloat16()) for name, tensor in served.items())
    ours = logits(policy)
    for module in policy.model.modules():
        if hasattr(module, "merge"):
            module.merge()
    merged = {name.replace(".base_layer", ""): p for name, p in policy.model.named_parameters() if ".lora_" not in name}
    assert all(torch.equal(merged[name], tensor) for name, tensor in served.items())
    plain.model.load_state_dict(served, strict=False)
    torch.testing.assert_close(logits(plain), ours, rtol=1e-4, atol=1e-4)


def test_rollouts_are_of_the_adapted_policy(model_folder: Path) -> None:
    policy = moved(load_policy(options(model_folder), CPU))
    prompts, config = [Prompt("0", "12=?", ""), Prompt("1", "7", "")], RolloutConfig(max_new_tokens=6)
    found = HFRollout(policy, config).generate(prompts, 4, (0,))
    other = load_policy(ModelConfig(name=str(model_folder)), CPU)
    first = HFRollout(other, config).generate(prompts, 4, (0,))
    other.model.load_state_dict(dict(served_tensors(policy.model, torch.float32)), strict=False)
    merged = HFRollout(other, config).generate(prompts, 4, (0,))
    assert [s.tokens for s in found] == [s.tokens for s in merged] != [s.tokens for s in first]


def test_the_reference_is_the_model_without_adapters(model_folder: Path) -> None:
    policy = moved(load_policy(options(model_folder), CPU))
    plain, ours = logits(load_policy(ModelConfig(name=str(model_folder)), CPU)), logits(policy)
    with load_reference(options(model_folder), policy).scoring() as first:
        assert first.model is policy.model and torch.equal(logits(first), plain)
    assert torch.equal(logits(policy), ours) and any(p.requires_grad for p in policy.model.parameters())
    with pytest.raises(RuntimeError, match="stop"), adapters_off(policy.model):
        raise RuntimeError("stop")
    assert torch.equal(logits(policy), ours)


def test_gradients_are_those_of_peft(model_folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    policy = moved(load_policy(options(model_folder), CPU))
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model_folder), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    ).eval()
    state = {f"base_model.model.{name}": parameter for name, parameter in policy.model.named_parameters()}
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    logits(policy).logsumexp(-1).sum().backward()
    theirs(input_ids=IDS).logits.logsumexp(-1).sum().backward()
    expected = {name.removeprefix("base_model.model."): p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() and len(found) == 28
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.fixture
def config(config: TrainConfig, model_folder: Path) -> TrainConfig:
    penalty, method = ObjectiveConfig(kl_coef=0.1), EntropyControlConfig()
    config = replace(config, model=options(model_folder), reward=RewardConfig(kind="tests.train.rewards.digit_share", workers=1))
    return changed(replace(config, objective=penalty, method=method), "optim", lr=3e-2)


def final_state(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from safetensors.torch import load_file

    folder = checkpoint.latest(run)
    state = json.loads((folder / "state.json").read_text())
    del state["files"]
    return load_file(folder / "adapter_model.safetensors"), state


def test_two_and_two_steps_are_four_and_every_folder_loads(config: TrainConfig, tmp_path: Path, model_folder: Path) -> None:
    """Resumed bit for bit; the checkpoint is loaded by PEFT, by transformers, by the trainer (merged), by `aer-train merge` and `eval`."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    whole = train(changed(config, "run", out=str(tmp_path / "whole")))
    run = train(changed(config, "run", steps=2))
    train(config, resume=True)
    assert stable_rows(whole) == stable_rows(run)
    (a, state_a), (b, state_b) = final_state(whole), final_state(run)
    assert state_a == state_b and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert all(row["policy/kl_ref"] > 0 for row in read_metrics(whole))

    folder = checkpoint.latest(run)
    assert not (folder / "model.safetensors").exists() and len(a) == 28 and any(tensor.any() for n, tensor in a.items() if "lora_B" in n)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), folder).eval()(input_ids=IDS).logits
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=IDS).logits
    merged = load_policy(ModelConfig(name=str(folder)), CPU)
    assert all(p.requires_grad for p in merged.model.parameters()) and not hasattr(merged.model, "peft_config")
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(input_ids=IDS).logits
    base = load_policy(ModelConfig(name=str(model_folder)), CPU)
    assert (theirs - logits(base)).abs().max() > 1e-2, "it has learnt"
    for found in (loaded, logits(merged), plain):
        torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)
    resumed = load_policy(config.model, CPU, adapters=folder)
    torch.testing.assert_close(logits(resumed), theirs, rtol=1e-4, atol=1e-4)
    fold_adapters(resumed.model)
    assert torch.equal(logits(resumed), logits(merged))

    assert (
        main(["eval", "--model", str(run), "--data", "builtin:countdown", "--samples=1", "--eval.limit=2", f"--out={tmp_path / 'eval'}"])
        == 0
    )

    (tmp_path / "there").mkdir()
    for args, message in (
        ([str(model_folder), "--out", str(tmp_path / "x")], "merge must be given a run or a folder with LoRA adapters"),
        ([str(run), "--out", str(tmp_path / "there")], "--out must not exist yet"),
    ):
        assert main(["merge", *args]) == 2, message
    for changes, message in (
        ({"lora_rank": 2}, r"model.lora_rank, lora_alpha and lora_targets must be those of .*step_000004, got others"),
        ({"lora_alpha": 16}, r"model.lora_rank, lora_alpha and lora_targets must be those of"),
        ({"lora_targets": ("q_proj",)}, r"model.lora_rank, lora_alpha and lora_targets must be those of"),
        ({"lora_rank": 0}, r"the configuration must fit the checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            train(changed(changed(config, "run", steps=6), "model", **changes), resume=True)
    with pytest.raises(ValueError, match=r"model.name must be a whole model for model.lora_rank > 0 \(aer-train merge makes one\)"):
        load_policy(options(folder), CPU)


def test_another_base_is_refused_at_resume(config: TrainConfig, model_folder: Path, tmp_path: Path) -> None:
    """The same shapes with other weights."""
    train(changed(config, "run", steps=2))
    other = load_policy(ModelConfig(name=str(model_folder)), CPU)
    with torch.no_grad():
        next(iter(other.model.parameters()))[3, 3] += 1e-3
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"model.name must be what the run began with .*, got other weights than at"):
        train(changed(config, "model", name=str(tmp_path / "other")), resume=True)


def test_a_full_run_does_not_go_on_with_adapters(config: TrainConfig) -> None:
    train(changed(changed(config, "run", steps=2), "model", lora_rank=0))
    with pytest.raises(ValueError, match=r"model.lora_rank must be 0 for a run that began without adapters, got .*step_000002"):
        train(config, resume=True)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"lora_rank": -1}, r"model.lora_rank must be >= 0, got -1"),
        ({"lora_alpha": 0}, r"model.lora_alpha must be >= 1, got 0"),
        ({"lora_targets": ()}, r"model.lora_targets must name at least one layer, got \[\]"),
        ({"lora_targets": ("lm_head",)}, r"model.lora_targets must leave out lm_head and embedding, got lm_head"),
        ({"lora_targets": ("embed_tokens",)}, r"model.lora_targets must leave out lm_head and embedding, got embed_tokens"),
        ({"lora_targets": ("nothing",)}, r"model.lora_targets must name linear layers of .*, got nothing"),
        ({"lora_targets": ("q_proj", "nothing")}, r"model.lora_targets must name linear layers of .*, got nothing"),
    ],
    ids=["rank", "alpha", "none", "head", "embedding", "unknown", "one_unknown"],
)
def test_what_is_refused(config: TrainConfig, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(changed(config, "model", **values))
    assert not Path(config.run.out).exists()


@pytest.mark.parametrize(
    "change", [{"use_dora": True}, {"bias": "all"}, {"peft_type": "IA3"}, {"r": None, "base_model_name_or_path": None}]
)
def test_adapters_of_another_kind_are_refused(tmp_path: Path, model_folder: Path, change: dict[str, Any]) -> None:
    written = {"peft_type": "LORA", "base_model_name_or_path": str(model_folder), "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**written, **change}))
    with pytest.raises(ValueError, match=r"model.name must be a model, or plain LoRA adapters with their base, got"):
        load_policy(ModelConfig(name=str(tmp_path)), CPU)


def test_doctor_counts_what_is_trained(config: TrainConfig) -> None:
    needs, full = predict_memory(config), predict_memory(changed(config, "model", lora_rank=0))
    trained = sum(p.numel() for p in load_policy(config.model, CPU).model.parameters() if p.requires_grad)
    assert needs["gradients (float32)"] == 4 * trained and needs["AdamW moments (float32)"] == 8 * trained
    assert needs["parameters (float32)"] == full["parameters (float32)"] + 4 * trained
    assert not any("reference" in name for name in needs) and any("reference" in name for name in full)


def sharded(config: TrainConfig) -> tuple[Any, dict[str, torch.Tensor]]:
    run = train(config)
    policy = load_policy(config.model, CPU, adapters=checkpoint.latest(run))
    return stable_rows(run), {name: tensor.clone() for name, tensor in served_tensors(policy.model, torch.float32)}


@pytest.mark.parametrize("recompute", [False, True])
def test_two_ranks_train_as_one(config: TrainConfig, tmp_path: Path, recompute: bool) -> None:
    """The same rows but for the last digits, from shards of model and adapters; resumed by one; the same weights are served."""
    config = changed(config, "model", gradient_checkpointing=recompute)
    one = train(changed(config, "run", out=str(tmp_path / "one")))
    (rows, served), (_, again) = spawn(sharded, 2, tmp_path, config)
    for mine, theirs in zip(stable_rows(one), rows, strict=True):
        for name in ("policy/kl_ref", "optim/grad_norm", "reward/mean", "entropy/mean"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name
    (a, state_a), (b, state_b) = final_state(one), final_state(Path(config.run.out))
    assert a.keys() == b.keys() and state_a["frozen"] == state_b["frozen"], "the digest of the frozen weights does not depend on shards"
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=1e-2, atol=2e-3)
    whole = load_policy(config.model, CPU, adapters=checkpoint.latest(Path(config.run.out)))
    expected = dict(served_tensors(whole.model, torch.float32))
    assert served.keys() == again.keys() == expected.keys()
    assert all(torch.equal(served[name], tensor) and torch.equal(again[name], tensor) for name, tensor in expected.items())
    train(changed(config, "run", steps=5), resume=True)
    assert len(stable_rows(Path(config.run.out))) == 5
