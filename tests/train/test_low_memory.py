"""Parameters in bfloat16 and moments in 8 bits: torchao's AdamW beside its equations, what a checkpoint holds, and what is refused."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aer_train import dist
from aer_train.config.tree import DataConfig, ModelConfig, OptimConfig, RewardConfig, RolloutConfig, RunConfig, TrainConfig
from aer_train.doctor import predict_memory
from aer_train.extras import check_extras
from aer_train.model import load_policy
from aer_train.model.reference import weights_digest
from aer_train.run import checkpoint
from aer_train.run.folder import read_metrics
from aer_train.step.optimizer import is_quantized, make_optimizer, take_step
from aer_train.step.update import update_policy
from aer_train.trainer import train
from tests.train.same_run import changed, stable_rows

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BF16 = {"param_dtype": "bfloat16", "dtype": "bfloat16"}
torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")


def adamw(p: torch.Tensor, gradients: list[torch.Tensor], lr: float, betas: tuple[float, float], decay: float) -> torch.Tensor:
    """AdamW in float64."""
    p, m, v = p.double(), torch.zeros(()), torch.zeros(())
    for step, g in enumerate(gradients, start=1):
        m, v = betas[0] * m + (1 - betas[0]) * g.double(), betas[1] * v + (1 - betas[1]) * g.double() ** 2
        p = p * (1 - lr * decay) - lr * (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + 1e-8)
    return p


def stepped(start: torch.Tensor, gradients: list[torch.Tensor], state: Any, seed: int = 0, lr: float = 1e-3) -> tuple[torch.Tensor, Any]:
    parameter = torch.nn.Parameter(start.clone())
    parameter.grad_dtype = torch.float32
    optimizer = make_optimizer(OptimConfig(lr=1.0, weight_decay=0.1, state=state), [parameter])
    for number, gradient in enumerate(gradients):
        parameter.grad = gradient.clone()
        take_step(optimizer, lr, seed + number)
    return parameter.detach(), optimizer


@torchao
@pytest.mark.parametrize("state", ["float32", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_are_those_of_adamw(state: Any, dtype: torch.dtype) -> None:
    """Five steps of 1/1000 of a weight. Those of a bfloat16 weight end up right on average, which rounding to the nearest would not move."""
    torch.manual_seed(0)
    gradients = [torch.randn(256, 256) + 1.0 for _ in range(5)]
    start = torch.ones(256, 256, dtype=dtype)
    found, optimizer = stepped(start, gradients, state)
    exact = adamw(start, gradients, 1e-3, (0.9, 0.99), 0.1)
    error = (found.double() - exact).mean() / (exact - 1).abs().mean()
    if dtype == torch.float32:
        worst = (found.double() - exact).abs().max() / (exact - 1).abs().max()
        assert worst < (1e-4 if state == "float32" else 0.1) and abs(error) < 0.01
    else:
        assert abs(error) < 0.02 and ((found == start).double().mean() > 0.1), "most stay, some move by 1/128 or 1/256"
        moments = optimizer.state[optimizer.param_groups[0]["params"][0]]
        assert is_quantized(moments["exp_avg"]) if state == "8bit" else moments["exp_avg"].dtype == torch.float32


LAYOUTS: dict[str, Any] = {"whole": lambda x: x, "rows": lambda x: x[2:4], "columns": lambda x: x[:, :4], "turned": lambda x: x.t()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_parameter_moves_the_same_in_every_layout(layout: str) -> None:
    """AdamW in one pass would write beside a slice."""
    whole = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    beside, found = whole.clone(), []
    for start in (LAYOUTS[layout](whole), LAYOUTS[layout](whole).clone(memory_format=torch.contiguous_format)):
        parameter = torch.nn.Parameter(start)
        optimizer = make_optimizer(OptimConfig(lr=0.1), [parameter])
        for step in range(3):
            (parameter - step).square().sum().backward()
            take_step(optimizer, 0.1, step)
        found.append(parameter.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)
    LAYOUTS[layout](beside).copy_(found[0])
    assert torch.equal(beside, whole), "what is beside it stays"


@torchao
def test_rounding_is_a_function_of_the_seed() -> None:
    gradients, start = [torch.randn(128, 128)], torch.ones(128, 128, dtype=torch.bfloat16)
    before = torch.random.get_rng_state()
    (a, _), (b, _), (c, _) = (stepped(start, gradients, "8bit", seed) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.random.get_rng_state(), before), "and moves no other random number"


@torchao
def test_small_tensors_of_a_bfloat16_model_have_float32_moments() -> None:
    _, optimizer = stepped(torch.ones(64, dtype=torch.bfloat16), [torch.randn(64)], "8bit")
    (moments,) = optimizer.state.values()
    assert moments["exp_avg"].dtype == moments["exp_avg_sq"].dtype == torch.float32 and not is_quantized(moments["exp_avg"])


def config_of(folder: Path, param_dtype: str = "bfloat16", state: str = "8bit") -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(param_dtype=param_dtype, dtype="bfloat16" if param_dtype == "bfloat16" else "auto"),  # type: ignore[arg-type]
        data=DataConfig(limit=32),
        rollout=RolloutConfig(group_size=6, max_new_tokens=8),
        reward=RewardConfig(kind="countdown", workers=1),
        optim=OptimConfig(lr=1e-3, prompts_per_step=4, updates_per_step=2, tokens_per_microbatch=256, state=state),  # type: ignore[arg-type]
        run=RunConfig(out=str(folder / "run"), steps=4, threads=1, save_every=2),
    )


def parts_of(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights, and the tensors of the optimizer."""
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file

    folder = checkpoint.latest(run)
    assert folder is not None
    reader = dcp.FileSystemReader(folder / "optimizer")
    found = {name: torch.empty(kind.size, dtype=kind.properties.dtype) for name, kind in reader.read_metadata().state_dict_metadata.items()}
    dcp.load(found, storage_reader=reader)
    return load_file(folder / "model.safetensors"), found


@torchao
@pytest.mark.slow
@pytest.mark.parametrize("param_dtype, state", [("bfloat16", "8bit"), ("bfloat16", "float32"), ("float32", "8bit")])
def test_two_and_two_steps_are_four(tmp_path: Path, param_dtype: str, state: str) -> None:
    """Bit for bit, with the weights in their own dtype and moments of one byte where they are quantized; other options are refused."""
    config = config_of(tmp_path, param_dtype, state)
    whole = train(changed(config, "run", out=str(tmp_path / "whole")))
    run = train(changed(config, "run", steps=2))
    train(config, resume=True)
    assert stable_rows(whole) == stable_rows(run) and read_metrics(whole)[-1]["optim/grad_norm"] > 0
    (a, moments_a), (b, moments_b) = parts_of(whole), parts_of(run)
    for mine, theirs in ((a, b), (moments_a, moments_b)):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert {tensor.dtype for tensor in a.values()} == {getattr(torch, param_dtype)}
    codes = [name for name in moments_a if name.endswith(".codes")]
    assert bool(codes) == (state == "8bit") and all(moments_a[name].dtype == torch.uint8 for name in codes)
    assert all(tensor.dtype == torch.float32 for name, tensor in moments_a.items() if name not in codes)
    other = "float32" if state == "8bit" else "8bit"
    with pytest.raises(ValueError, match=r"the configuration must fit the checkpoint"):
        train(changed(changed(config, "run", steps=6), "optim", state=other), resume=True)


@torchao
def test_gradients_add_up_in_float32(model_folder: Path) -> None:
    """512 times 1 + 1/128 is 516; in bfloat16 the sum would stop to grow at 256."""
    policy = load_policy(ModelConfig(name=str(model_folder), **BF16), CPU)
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.bfloat16}
    parameter = policy.head.weight
    for _ in range(512):
        (parameter[0, :1] * torch.tensor(1 + 1 / 128, dtype=torch.bfloat16)).sum().backward()
    assert parameter.grad.dtype == torch.float32 and parameter.grad[0, 0] == 516
    assert weights_digest(policy.model.parameters()) == weights_digest(
        load_policy(ModelConfig(name=str(model_folder), **BF16), CPU).model.parameters()
    )


@torchao
def test_an_update_of_dead_samples_moves_nothing(model_folder: Path) -> None:
    from aer_train.types import Group, Verdict
    from tests.train.test_dead_samples import CONFIG, PROMPTS, HFRollout
    from tests.train.worth import weighed

    policy = load_policy(ModelConfig(name=str(model_folder), **BF16), CPU)
    samples = HFRollout(policy, CONFIG.rollout).generate(PROMPTS, 2, (0,))
    groups = [Group(prompt, samples[2 * i : 2 * i + 2], [Verdict("wrong", 0.0, None, 0.0)] * 2) for i, prompt in enumerate(PROMPTS)]
    config = replace(CONFIG, optim=replace(CONFIG.optim, state="8bit"))
    optimizer = make_optimizer(config.optim, policy.model.parameters())
    for step, advantages in enumerate(([1.0, -1.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0], [0.0] * 8), start=1):
        before = [parameter.clone() for parameter in policy.model.parameters()]
        moments = [value.clone() for state in optimizer.state.values() for value in state.values()]
        update_policy(policy, optimizer, weighed(groups, advantages, [0.0] * 8), config, step=step)
        moved = any(not torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
        assert moved == (step == 1)
    after = [value for state in optimizer.state.values() for value in state.values()]
    assert len(moments) == len(after) and all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))


@pytest.mark.parametrize(
    "model, state, message",
    [
        (
            {"param_dtype": "bfloat16", "dtype": "float32"},
            "float32",
            r"model.param_dtype must be float32 for model.dtype float32, got bfloat16",
        ),
        ({**BF16, "lora_rank": 4}, "float32", r"model.param_dtype must be float32 with model.lora_rank > 0, got bfloat16"),
        ({"param_dtype": "bfloat16"}, "float32", r"model.dtype must be bfloat16 for model.param_dtype bfloat16 on a CPU, got auto"),
        ({"liger": True}, "float32", r"model.liger must be False without a GPU, got True"),
    ],
    ids=["products", "lora", "auto_on_a_cpu", "liger"],
)
def test_what_is_refused(tmp_path: Path, model: dict[str, Any], state: Any, message: str) -> None:
    config = TrainConfig(model=ModelConfig(**model), optim=OptimConfig(state=state), run=RunConfig(out=str(tmp_path / "run"), device="cpu"))
    with pytest.raises(ValueError, match=message):
        train(config)
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "world", lambda: 2)
    for config, name in (
        (TrainConfig(model=ModelConfig(**BF16)), "model.param_dtype"),
        (TrainConfig(optim=OptimConfig(state="8bit")), "optim.state"),
    ):
        with pytest.raises(ValueError, match=rf"{name} must be float32 with several processes, .*, got"):
            check_extras(config, CPU)


@pytest.mark.parametrize(
    "config, device, message",
    [
        (TrainConfig(model=ModelConfig(param_dtype="bfloat16")), GPU, r'model.param_dtype bfloat16 needs: pip install "aer-rl\[lowbit\]"'),
        (TrainConfig(optim=OptimConfig(state="8bit")), CPU, r'optim.state 8bit needs: pip install "aer-rl\[lowbit\]"'),
        (TrainConfig(model=ModelConfig(liger=True)), GPU, r'model.liger needs: pip install "aer-rl\[liger\]"'),
    ],
    ids=["parameters", "state", "liger"],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, config: TrainConfig, device: torch.device, message: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=message):
        check_extras(config, device)


def test_doctor_counts_what_is_kept(tmp_path: Path) -> None:
    full, thin = predict_memory(config_of(tmp_path, "float32", "float32")), predict_memory(config_of(tmp_path))
    size = full["parameters (float32)"] // 4
    assert thin["parameters (bfloat16)"] == 2 * size and thin["AdamW moments (8bit)"] == 2 * size
    assert full["AdamW moments (float32)"] == 8 * size and thin["gradients (float32)"] == 4 * size
    assert "parameters cast for products" not in thin
