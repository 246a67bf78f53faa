"""What a model cannot be given is told before the first step, and padding with a token that it lacks is no problem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from aer_train.cli import main
from aer_train.config.tree import DataConfig, ModelConfig, RolloutConfig, TrainConfig, VLLMConfig
from aer_train.data.prompts import load_prompts
from aer_train.model import Policy, load_policy
from aer_train.rollout.hf import HFRollout
from aer_train.rollout.lengths import check_prompts, positions
from aer_train.step.padding import pad_id
from tests.train.conftest import save_byte_model, save_tokenizer

SIZES = {"vocab_size": 17, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}


def gpt2(folder: Path, positions: int = 16) -> Path:
    save_tokenizer(folder)
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(n_positions=positions, **SIZES)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transformers.GPT2Config(n_positions=40), 40),
        (transformers.LlamaConfig(max_position_embeddings=40), 40),
        (transformers.OPTConfig(max_position_embeddings=40), 40),
        (transformers.Gemma3Config(text_config={"max_position_embeddings": 40}), 40),
        (transformers.BloomConfig(), None),
        (transformers.MptConfig(max_seq_len=40), None),
        (transformers.MptConfig(max_seq_len=40, attn_config={"alibi": False}), 40),
        (transformers.FalconConfig(alibi=True), None),
        (transformers.MambaConfig(), None),
        (
            transformers.Qwen2Config(
                max_position_embeddings=32,
                rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4},
            ),
            128,
        ),
    ],
    ids=["learned", "rotary", "learned with an offset", "a part", "alibi", "mpt alibi", "mpt", "falcon alibi", "no positions", "stretched"],
)
def test_positions(config: Any, expected: int | None) -> None:
    assert positions(config) == expected


def data(folder: Path) -> Path:
    (folder / "data.jsonl").write_text("".join(json.dumps({"problem": "1" * n + "=?", "answer": "1"}) + "\n" for n in (1, 8, 4)))
    return folder / "data.jsonl"


@pytest.mark.parametrize("command", ["train", "eval"])
def test_no_room_for_the_response(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    model, out = gpt2(tmp_path / "model"), tmp_path / "out"
    where = {
        "train": ["--model.name", str(model), "--run.out", str(out), "--data.train"],
        "eval": ["--model", str(model), "--out", str(out), "--data"],
    }
    capsys.readouterr()
    assert main([command, *where[command], str(data(tmp_path)), "--rollout.max-new-tokens", "7"]) == 2
    assert capsys.readouterr().err == (
        f"error: rollout.max_new_tokens must leave room for prompts of 10 tokens ({tmp_path}/data.jsonl) within the model's positions (16), "
        "got 7: lower it to 6, or lower data.max_prompt_tokens\n"
    )
    assert not out.exists(), "before anything is written"


def test_the_room_is_that_of_the_longest_prompt(tmp_path: Path) -> None:
    policy = load_policy(ModelConfig(name=str(gpt2(tmp_path))), torch.device("cpu"))
    prompts = load_prompts(DataConfig(), policy.tokenizer, str(data(tmp_path)), "train")
    assert prompts.longest == 10

    def check(new: int, **options: Any) -> None:
        check_prompts(
            policy, TrainConfig(rollout=RolloutConfig(max_new_tokens=new, backend=options.pop("backend", "hf")), **options), [prompts]
        )

    check(6)
    sampled = HFRollout(policy, RolloutConfig(max_new_tokens=6, group_size=2)).generate(prompts.prompts, 2, (0,))
    assert len(sampled) == 6, "as many as there are positions"
    engine = VLLMConfig(max_model_len=14)
    check(6, vllm=engine)
    check(4, backend="vllm", vllm=engine)
    with pytest.raises(
        ValueError, match=r"must leave room for prompts of 10 tokens .* within vllm.max_model_len \(14\), got 5: lower it to 4"
    ):
        check(5, backend="vllm", vllm=engine)
    with pytest.raises(ValueError, match=r"within the model's positions \(16\)"):
        check(7, backend="vllm")
    longer = load_prompts(DataConfig(template="{problem}111111"), policy.tokenizer, str(data(tmp_path)), "train")
    with pytest.raises(
        ValueError, match=r"data.max_prompt_tokens must leave room for responses, got prompts of 16 tokens .* positions \(16\)"
    ):
        check_prompts(policy, TrainConfig(), [longer])


@pytest.mark.slow
def test_padding_with_a_token_that_the_model_lacks(tmp_path: Path) -> None:
    """Samples and log-probs are those of a tokenizer whose padding token is in the embedding."""
    save_byte_model(tmp_path)
    rows = [{"problem": "1" * n + "=?", "answer": "1"} for n in (1, 8, 4)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(policy: Policy) -> list[tuple[list[int], list[float]]]:
        prompts = load_prompts(DataConfig(), policy.tokenizer, str(tmp_path / "data.jsonl"), "train").prompts
        samples = HFRollout(policy, RolloutConfig(max_new_tokens=5)).generate(prompts, 2, (0,))
        return [(sample.tokens, sample.logprobs) for sample in samples]

    policy = load_policy(ModelConfig(name=str(tmp_path)), torch.device("cpu"))
    expected = run(policy)
    assert pad_id(policy) == 0
    policy.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    policy.tokenizer.save_pretrained(tmp_path)
    policy = load_policy(ModelConfig(name=str(tmp_path)), torch.device("cpu"))
    assert policy.tokenizer.pad_token_id == policy.head.weight.shape[0] and pad_id(policy) == 0
    assert run(policy) == expected
    out = tmp_path / "run"
    flags = [
        "--rollout.group-size",
        "2",
        "--rollout.max-new-tokens",
        "4",
        "--optim.prompts-per-step",
        "2",
        "--run.steps",
        "1",
        "--run.threads",
        "1",
    ]
    assert main(["train", "--model.name", str(tmp_path), "--data.train", str(tmp_path / "data.jsonl"), "--run.out", str(out), *flags]) == 0


def test_a_token_that_the_model_lacks(tmp_path: Path) -> None:
    save_byte_model(tmp_path)
    policy = load_policy(ModelConfig(name=str(tmp_path)), torch.device("cpu"))
    policy.tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    (tmp_path / "data.jsonl").write_text('{"problem": "1", "answer": "1"}\n')
    prompts = load_prompts(DataConfig(template="<turn>{problem}"), policy.tokenizer, str(tmp_path / "data.jsonl"), "train")
    with pytest.raises(
        ValueError, match=r"model.name must have an embedding for every token of the prompts, got 258 rows and token 258 \('<turn>'\)"
    ):
        check_prompts(policy, TrainConfig(), [prompts])
