"""A tiny random Qwen3 with a character tokenizer, saved as an ordinary Hugging Face folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aer_kernels import EntropyControlConfig
from aer_train.config.tree import DataConfig, ModelConfig, OptimConfig, RewardConfig, RolloutConfig, RunConfig, TrainConfig
from aer_train.model import Policy, load_policy
from tests.train.kept_engine import KeptEngine

CHARACTERS = "0123456789+-*=?"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def save_tokenizer(folder: Path) -> None:
    """Characters, <pad> = 0 and <eos> = 1."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)


def save_byte_model(folder: Path) -> None:
    """A random Qwen3 over bytes, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=False,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("tiny_model")
    save_tokenizer(folder)
    config = Qwen3Config(
        vocab_size=len(CHARACTERS) + 2,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=1,
        pad_token_id=0,
        attention_dropout=0.1,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def untied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 (biases) with an lm_head of its own, and five layers' worth of odd sizes that two ranks cannot share equally."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("untied_model")
    save_tokenizer(folder)
    config = Qwen2Config(
        vocab_size=len(CHARACTERS) + 2,
        hidden_size=30,
        intermediate_size=51,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        initializer_range=0.2,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(1)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def policy(model_folder: Path) -> Policy:
    """A fresh copy of the tiny policy, on the CPU in fp32."""
    return load_policy(ModelConfig(name=str(model_folder), share_prompts=False), torch.device("cpu"))


@pytest.fixture(scope="session")
def kept_engine() -> Iterator[KeptEngine]:
    """In place of `vllm.LLM` for the rest of the session, in this process."""
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed")
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    kept = vllm.LLM = KeptEngine()
    yield kept
    kept.end()
    del vllm.LLM  # which vLLM makes anew when it is asked for


@pytest.fixture
def config(model_folder: Path, tmp_path: Path) -> TrainConfig:
    """Four steps of the tiny policy; the target entropy is out of reach, so that the controller always moves."""
    return TrainConfig(
        model=ModelConfig(name=str(model_folder)),
        data=DataConfig(limit=96),
        rollout=RolloutConfig(group_size=4, max_new_tokens=6),
        reward=RewardConfig(kind="countdown"),
        method=EntropyControlConfig(target=5.0),
        optim=OptimConfig(lr=3e-3, prompts_per_step=6, updates_per_step=2, tokens_per_microbatch=64),
        run=RunConfig(out=str(tmp_path / "run"), steps=4, threads=1, save_every=2),
    )
