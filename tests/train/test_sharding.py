"""A policy in shards over two processes against the same policy in one: gradients, samples, whole tensors, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aer_kernels import AdaptiveEntropyController
from aer_train import dist
from aer_train.config.tree import ModelConfig, ObjectiveConfig, RolloutConfig
from aer_train.model import Policy, load_policy
from aer_train.rollout.hf import HFRollout
from aer_train.run import checkpoint
from aer_train.run.checkpoint import Progress
from aer_train.sharding import full_named_tensors
from aer_train.step.batching import MicroBatch, micro_batches
from aer_train.step.loss import measure, policy_loss
from aer_train.step.objective import Objective
from aer_train.types import Prompt, Sample
from tests.ranks import CPU, spawn
from tests.train.worth import columns

pytestmark = pytest.mark.slow

OBJECTIVES = {
    "ppo": ObjectiveConfig(),
    "gspo": ObjectiveConfig(kind="gspo", aggregation="sequence_mean", clip_low=1e-3, clip_high=1e-3),
    "recomputed": ObjectiveConfig(kind="cispo", aggregation="constant"),
}
PROMPTS = [Prompt(str(i), f"{i}+{7 * i}=?", "") for i in range(1, 6)]


def some_samples(count: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(3)
    samples = []
    for i in range(count):
        prompt, response = (torch.randint(2, 17, (n,), generator=generator).tolist() for n in (3 + i % 4, 1 + i % 5))
        samples.append(Sample(i // 2, i % 2, prompt, response, [-1.0 - 0.1 * t for t in range(len(response))], "", True))
    return samples


def micros(rank: int, world: int) -> list[tuple[range, MicroBatch]]:
    """Three micro-batches a rank, each with its samples' numbers. The last one of the last rank has no advantages and no bonus."""
    samples, found = some_samples(12), []
    for start in (0, 4, 8):
        rows = range(start + 4 * rank // world, start + 4 * (rank + 1) // world)
        picked = [samples[row] for row in rows]
        advantages = [0.0 if row >= 10 else 1.5 - 0.3 * row for row in rows]
        coefficients = [0.0 if row >= 10 else 0.05 * (row % 3) for row in rows]
        old = [[-1.5] * len(sample.tokens) for sample in picked]
        worth = columns(picked, advantages, coefficients, old)
        (micro,) = micro_batches(picked, range(len(picked)), worth, tokens_per_microbatch=10_000, pad_id=0, device=CPU)
        found.append((rows, micro))
    return found


def gradients(policy: Policy, objective: ObjectiveConfig, rank: int, world: int) -> dict[str, Any]:
    """The gradient of all samples, its norm, and the log-probs of this rank's, measured before."""
    policy.model.zero_grad()
    logprobs, losses = {}, []
    for rows, batch in micros(rank, world):
        measured = measure(policy, batch, temperature=0.7)["logprobs"]
        logprobs |= {rows[row]: values[mask] for row, values, mask in zip(batch.rows, measured, batch.loss_mask, strict=True)}
    for _, batch in micros(rank, world):
        output = policy_loss(policy, batch, Objective(objective, 12.0, 36.0, temperature=0.7))
        output.loss.backward()
        losses.append(output.loss.item())
    norm = torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1e9)
    whole = {name: p.grad if world == 1 else p.grad.full_tensor() for name, p in policy.model.named_parameters()}
    return {
        "loss": sum(losses),
        "norm": norm.item() if world == 1 else norm.full_tensor().item(),
        "gradients": whole,
        "logprobs": logprobs,
    }


def optimizer_of(policy: Policy) -> torch.optim.AdamW:
    """A large eps: the exact gradient of a key bias is 0, and Adam would make a step of its rounding error."""
    return torch.optim.AdamW(policy.model.parameters(), lr=1e-2, weight_decay=0.1, eps=1e-3)


def steps(policy: Policy, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        gradients(policy, OBJECTIVES["ppo"], dist.rank(), dist.world())
        optimizer.step()


def sampled(policy: Policy, lengths: tuple[int, ...]) -> list[Sample]:
    """Each rank samples another number of prompts, to another length."""
    limit = lengths[dist.rank()]
    rollout = HFRollout(policy, RolloutConfig(max_new_tokens=limit, batch_size=3))
    return rollout.generate(PROMPTS[:limit], 2, (0, "train", 1))


def everything(folders: dict[str, str], out: str) -> dict[str, Any]:
    """What a rank finds: everything that the tests below compare."""
    rank, world = dist.rank(), dist.world()
    found: dict[str, Any] = {}
    for name, folder in folders.items():
        config = ModelConfig(name=folder)
        policy = load_policy(config, CPU)
        found[name, "shards"] = sum(p.to_local().numel() for p in policy.model.parameters())
        for kind, objective in OBJECTIVES.items():
            chosen = load_policy(replace(config, gradient_checkpointing=True), CPU) if kind == "recomputed" else policy
            found[name, kind] = gradients(chosen, objective, rank, world)
        found[name, "rounded"] = gradients(load_policy(replace(config, dtype="bfloat16"), CPU), OBJECTIVES["ppo"], rank, world)
        found[name, "samples"] = sampled(policy, (5, 2))
        found[name, "tensors"] = dict(full_named_tensors(policy.model))
        found[name, "bfloat16"] = {k: t.dtype for k, t in full_named_tensors(policy.model, torch.bfloat16)}
        optimizer, controller = optimizer_of(policy), AdaptiveEntropyController()
        steps(policy, optimizer, 2)
        saved = checkpoint.save(Path(out) / name, Progress(2, 8), policy, optimizer, controller, keep=1)
        steps(policy, optimizer, 1)
        found[name, "three"] = dict(full_named_tensors(policy.model))
        found[name, "two_and_one"] = resumed(saved)
        found[name, "from_one"] = resumed(Path(out) / f"{name}_one" / "checkpoints" / "step_000002")
        found[name, "full_disk"] = failing_save(Path(out) / name, policy, optimizer)
    found["rest"] = rest(rank)
    return found


def resumed(folder: Path) -> dict[str, torch.Tensor]:
    """The weights after one more step from a checkpoint."""
    policy = load_policy(ModelConfig(name=str(folder)), CPU)
    optimizer = optimizer_of(policy)
    assert checkpoint.restore(folder, policy, optimizer, AdaptiveEntropyController()) == Progress(2, 8)
    steps(policy, optimizer, 1)
    return dict(full_named_tensors(policy.model))


def failing_save(run: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> str:
    """What is said when the second rank cannot write."""
    real = torch.save

    def full(*_: Any) -> None:
        raise OSError("disk full")

    torch.save = full if dist.rank() == 1 else real
    try:
        checkpoint.save(run, Progress(3, 12), policy, optimizer, AdaptiveEntropyController(), keep=1)
    except OSError as error:
        return str(error)
    finally:
        torch.save = real
    return "nothing"


def rest(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {"gathered": dist.all_gather(("rank", rank)), "from_main": dist.from_main(lambda: f"said {rank}")}
    dist.barrier()
    dist.check_same("step", 3)
    for name, call in (
        ("raised", lambda: dist.from_main(lambda: int("x"))),
        ("differs", lambda: dist.check_same("step", rank)),
    ):
        try:
            call()
        except Exception as error:
            found[name] = error
    return found


@pytest.fixture(scope="module")
def one_and_two(
    model_folder: Path, untied_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Policy], list[dict[Any, Any]], Path]:
    """The policies in this process with a checkpoint of two steps for each, and what two ranks found."""
    out = tmp_path_factory.mktemp("two_ranks")
    folders = {"tied": str(model_folder), "untied": str(untied_folder)}
    for name, folder in folders.items():
        policy = load_policy(ModelConfig(name=folder), CPU)
        optimizer = optimizer_of(policy)
        steps(policy, optimizer, 2)
        checkpoint.save(out / f"{name}_one", Progress(2, 8), policy, optimizer, AdaptiveEntropyController(), keep=1)
    found = spawn(everything, 2, out, folders, str(out))
    return {name: load_policy(ModelConfig(name=folder), CPU) for name, folder in folders.items()}, found, out


def assert_close(found: dict[Any, torch.Tensor], expected: dict[Any, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("name", ["tied", "untied"])
def test_gradients_are_the_sum_over_ranks(name: str, kind: str, one_and_two: Any) -> None:
    policies, ranks, _ = one_and_two
    expected = gradients(policies[name], OBJECTIVES[kind], 0, 1)
    assert sum(rank[name, kind]["loss"] for rank in ranks) == pytest.approx(expected["loss"], rel=1e-5)
    for rank in ranks:
        assert_close(rank[name, kind]["gradients"], expected["gradients"])
        assert rank[name, kind]["norm"] == pytest.approx(expected["norm"], rel=1e-5)
    assert_close(ranks[0][name, kind]["logprobs"] | ranks[1][name, kind]["logprobs"], expected["logprobs"])


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_products_in_bfloat16(name: str, one_and_two: Any) -> None:
    """The parameters are rounded before they are gathered, and gradients summed in float32."""
    policies, ranks, _ = one_and_two
    exact = torch.cat([g.flatten() for g in gradients(policies[name], OBJECTIVES["ppo"], 0, 1)["gradients"].values()])
    for rank in ranks:
        found = torch.cat([g.flatten() for g in rank[name, "rounded"]["gradients"].values()])
        assert found.dtype == torch.float32 and 1e-4 < (found - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_rank_holds_half_of_the_parameters(name: str, one_and_two: Any) -> None:
    policies, ranks, _ = one_and_two
    total = sum(p.numel() for p in policies[name].model.parameters())
    shares = [rank[name, "shards"] for rank in ranks]
    assert sum(shares) == total and all(0.4 * total < share < 0.6 * total for share in shares)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_ranks_sample_at_their_own_pace(name: str, one_and_two: Any) -> None:
    policies, ranks, _ = one_and_two
    for limit, rank in zip((5, 2), ranks, strict=True):
        rollout = HFRollout(policies[name], RolloutConfig(max_new_tokens=limit, batch_size=3))
        expected = rollout.generate(PROMPTS[:limit], 2, (0, "train", 1))
        assert [s.tokens for s in rank[name, "samples"]] == [s.tokens for s in expected] and len(expected) == 2 * limit
        for found, sample in zip(rank[name, "samples"], expected, strict=True):
            assert found.logprobs == pytest.approx(sample.logprobs, abs=1e-5)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_whole_tensors_one_by_one(name: str, one_and_two: Any) -> None:
    policies, ranks, _ = one_and_two
    expected = dict(policies[name].model.named_parameters())
    for rank in ranks:
        assert rank[name, "tensors"].keys() == expected.keys() == rank[name, "bfloat16"].keys()
        assert all(torch.equal(rank[name, "tensors"][key], value) for key, value in expected.items())
        assert set(rank[name, "bfloat16"].values()) == {torch.bfloat16}


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_checkpoints_fit_any_number_of_ranks(name: str, one_and_two: Any, tmp_path: Path) -> None:
    """Two steps and one more are three, whether one or two processes made the first two and the third."""
    policies, ranks, out = one_and_two
    policy = load_policy(ModelConfig(name=policies[name].model.name_or_path), CPU)
    steps(policy, optimizer_of(policy), 3)
    expected = dict(policy.model.named_parameters())
    for rank in ranks:
        for way in ("three", "two_and_one", "from_one"):
            assert_close(rank[name, way], expected)
        assert all(torch.equal(rank[name, "two_and_one"][key], value) for key, value in rank[name, "three"].items()), "the same bits"
    assert_close(resumed(out / name / "checkpoints" / "step_000002"), expected)


def test_a_rank_that_cannot_write_leaves_the_previous_checkpoint(one_and_two: Any) -> None:
    _, ranks, out = one_and_two
    for name in ("tied", "untied"):
        told = {rank[name, "full_disk"].partition("; ")[0] for rank in ranks}
        assert told == {"checkpoint must be written completely, got OSError on rank 1: disk full"}
        assert checkpoint.latest(out / name).name == "step_000002"


def test_a_checkpoint_of_two_ranks_is_an_ordinary_folder(one_and_two: Any) -> None:
    from transformers import AutoModelForCausalLM

    _, _, out = one_and_two
    for name, tied in (("tied", True), ("untied", False)):
        model = AutoModelForCausalLM.from_pretrained(out / name / "checkpoints" / "step_000002")
        assert type(model).__name__ == ("Qwen3ForCausalLM" if tied else "Qwen2ForCausalLM")
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
        assert model.config.architectures == [type(model).__name__]


def test_what_processes_say_to_each_other(one_and_two: Any) -> None:
    _, ranks, _ = one_and_two
    for rank in ranks:
        rest = rank["rest"]
        assert rest["gathered"] == [("rank", 0), ("rank", 1)] and rest["from_main"] == "said 0"
        assert isinstance(rest["raised"], ValueError) and "invalid literal" in str(rest["raised"])
        assert str(rest["differs"]) == "step must be the same on every rank, got [0, 1]"
