"""What is free, what a token costs, and the sizes that follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode

from aer_train.config.tree import ModelConfig, OptimConfig, RolloutConfig, TrainConfig
from aer_train.memory.costs import Costs, measure_costs, recomputed
from aer_train.memory.errors import is_out_of_memory, memory_errors
from aer_train.memory.free import host_free_bytes
from aer_train.memory.sizes import fitting, sampling_way_out, training_way_out, with_sizes
from aer_train.model import Policy

GIB = 1 << 30
CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def costs_of(config: Any) -> Costs:
    from contextlib import nullcontext

    from transformers import AutoModelForCausalLM

    return measure_costs(AutoModelForCausalLM.from_config(config), CPU, nullcontext(), 512)


def machine(folder: Path, available: int, groups: dict[str, dict[str, str]], own: str) -> tuple[Path, Path]:
    """/proc and /sys/fs/cgroup of a machine."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 999 kB\nMemAvailable: {available >> 10} kB\n")
    (proc / "self" / "status").write_text("VmSize: 1024 kB\n")
    (proc / "self" / "cgroup").write_text(own)
    for name, files in groups.items():
        (cgroups / name).mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (cgroups / name / file).write_text(text)
    return proc, cgroups


LIMITED = {"memory.max": f"{4 * GIB}\n", "memory.current": f"{3 * GIB}\n", "memory.stat": f"anon 5\ninactive_file {GIB}\n"}
FREE = {"memory.max": "max\n", "memory.current": f"{3 * GIB}\n"}
V1 = {"memory.limit_in_bytes": f"{4 * GIB}\n", "memory.usage_in_bytes": f"{3 * GIB}\n", "memory.stat": f"total_inactive_file {GIB}\n"}


@pytest.mark.parametrize(
    ("groups", "own", "expected"),
    [
        ({}, "", 16 * GIB),
        ({"a/b": FREE}, "0::/a/b\n", 16 * GIB),
        ({"a": FREE, "a/b": LIMITED}, "0::/a/b\n", 2 * GIB),
        ({"a": LIMITED, "a/b": FREE}, "0::/a/b\n", 2 * GIB),
        ({"": LIMITED}, "0::/\n", 2 * GIB),
        ({"memory/job": V1}, "3:cpu,cpuacct:/\n9:memory:/job\n", 2 * GIB),
    ],
    ids=["none", "no limit", "own limit", "limit above", "container", "version 1"],
)
def test_free_memory_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: dict[str, dict[str, str]], own: str, expected: int
) -> None:
    places = machine(tmp_path, 16 * GIB, groups, own)
    assert host_free_bytes(*places) == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert host_free_bytes(*places) == expected // 4
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr("resource.getrlimit", lambda which: (GIB + (1 << 20), -1))
    assert host_free_bytes(*places) == GIB, "ulimit -v, less the addresses that are in use"


@pytest.mark.parametrize(
    "name", ["LlamaConfig", "Qwen3Config", "GPT2Config", "Gemma2Config", "MixtralConfig", "MambaConfig", "BloomConfig"]
)
def test_costs_are_those_of_larger_batches(name: str) -> None:
    """What 5 sequences of 96 tokens keep, from probes of other shapes. Only what does not depend on the tokens may be missing."""
    from transformers import AutoModelForCausalLM

    from aer_train.memory.costs import _saved_bytes

    model = AutoModelForCausalLM.from_config(getattr(transformers, name)(**SMALL)).eval()
    costs = costs_of(model.config)
    six, five = (_saved_bytes(model.base_model, rows, 96, CPU) for rows in (6, 5))
    assert 96 * costs.activations(96) == pytest.approx(six - five, rel=0.05)
    assert (costs.pair > 20) == (name == "BloomConfig"), f"{costs}: an attention that keeps its scores costs pairs; others at most masks"


def test_the_cache_is_keys_and_values() -> None:
    costs = costs_of(transformers.LlamaConfig(**SMALL))
    assert costs.cache == 2 * 2 * 2 * 16 * 4, "keys and values of 2 layers, 2 heads, 16 dimensions, float32"
    assert costs_of(transformers.MambaConfig(**SMALL)).cache == 0, "a state does not grow"


@pytest.mark.slow
def test_a_model_without_memory_costs_the_same() -> None:
    """That is how doctor predicts."""
    config = transformers.LlamaConfig(**SMALL)
    with FakeTensorMode():
        fake = costs_of(config)
    real = costs_of(config)
    assert real.activations(96) <= fake.activations(96) <= 1.2 * real.activations(96) and fake.cache == real.cache


def test_recomputation_keeps_inputs_and_one_layer() -> None:
    assert recomputed(Costs(1000.0, 10.0, 7.0), 5, 8) == Costs(200.0 + 4 * 5 * 8, 2.0, 7.0)


def test_sizes() -> None:
    costs = Costs(1e6, 0.0, 1e5)
    assert fitting(costs, 16 * GIB, 500, GPU) == (4096, 128)
    assert fitting(costs, 64 * GIB, 500, CPU) == fitting(costs, 16 * GIB, 500, CPU) == (1024, 32), "a CPU gains nothing by more"
    assert fitting(costs, 1 * GIB, 500, CPU) == (256, 8)
    assert fitting(Costs(1e6, 1e4, 1e5), 16 * GIB, 500, GPU)[0] < 4096, "scores of the attention count"
    assert fitting(Costs(10.0, 0.0, 0.0), 16 * GIB, 500, CPU) == (16384, 256), "never more than these"
    assert fitting(costs, -GIB, 500, CPU) == (128, 4), "never less: it is tried, and told if it fails"


def test_sizes_that_are_given_stay(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    given = TrainConfig(optim=OptimConfig(tokens_per_microbatch=77), rollout=RolloutConfig(batch_size=5))
    assert with_sizes(given, policy, 10) == given
    found = with_sizes(TrainConfig(), policy, 10)
    assert (found.optim.tokens_per_microbatch, found.rollout.batch_size) == (16384, 256), "a small model is not limited"
    monkeypatch.setattr("aer_train.memory.sizes.free_bytes", lambda device: 20 << 20)
    small = with_sizes(TrainConfig(), policy, 10)
    assert small.optim.tokens_per_microbatch is not None and small.optim.tokens_per_microbatch < 2048
    assert with_sizes(small, policy, 10) == small, "what config.json records is what a resumed run has"
    assert with_sizes(TrainConfig(rollout=RolloutConfig(backend="vllm")), policy, 10).rollout.batch_size == 256


def test_out_of_memory_is_told_with_the_option() -> None:
    def allocate() -> None:
        torch.empty(1 << 60)

    way_out = training_way_out(TrainConfig(optim=OptimConfig(tokens_per_microbatch=7)))
    expected = r"^out of memory: lower optim.tokens_per_microbatch \(it is 7\), or set model.gradient_checkpointing true \(.*allocate"
    with pytest.raises(MemoryError, match=expected), memory_errors(way_out):
        allocate()
    checkpointing = TrainConfig(model=ModelConfig(gradient_checkpointing=True), optim=OptimConfig(tokens_per_microbatch=7))
    assert training_way_out(checkpointing) == "lower optim.tokens_per_microbatch (it is 7)"
    assert sampling_way_out(TrainConfig(rollout=RolloutConfig(batch_size=9))).startswith("lower rollout.batch_size (it is 9)")
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError, match="shapes"), memory_errors("no"):
        raise RuntimeError("shapes do not match")
