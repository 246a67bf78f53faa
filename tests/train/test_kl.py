"""The KL penalty: its gradient beside float64 autograd and TRL's formula, who is live, what is measured, what is refused, resume."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aer_kernels import EntropyControlConfig
from aer_kernels.methods import AER, method_class
from aer_train.config.checks import check_config
from aer_train.config.tree import ModelConfig, ObjectiveConfig, OptimConfig, RewardConfig, RolloutConfig, TrainConfig
from aer_train.doctor import predict_memory
from aer_train.model import Policy, frozen_digest, load_policy, load_reference
from aer_train.model.reference import weights_digest
from aer_train.rollout.hf import HFRollout
from aer_train.run import checkpoint
from aer_train.run.folder import read_metrics
from aer_train.step.scores import score
from aer_train.step.tokens import Weighed
from aer_train.step.update import update_policy
from aer_train.trainer import train
from aer_train.types import Group, Prompt, Verdict
from tests.ranks import spawn
from tests.train.same_run import assert_same_run, changed, stable_rows
from tests.train.worth import weighed

pytestmark = pytest.mark.slow

CPU, COEF = torch.device("cpu"), 0.3
PROMPTS = [Prompt(str(i), text, "") for i, text in enumerate(["12=?", "7", "345+6=?", "98"])]
CONFIG = TrainConfig(
    rollout=RolloutConfig(max_new_tokens=6, temperature=0.9),
    optim=OptimConfig(lr=1e-2, warmup_steps=0, grad_clip=1e6, tokens_per_microbatch=20),
)
ADVANTAGES = [1.0, -1.0, 0.0, 0.0, 0.0, 0.0, -2.0, 0.0]
PLAIN = AER(EntropyControlConfig(kind="off"))
KINDS = ("k1", "abs_k1", "k2", "k3")


@pytest.fixture
def groups(policy: Policy) -> list[Group]:
    samples = HFRollout(policy, CONFIG.rollout).generate(PROMPTS, 2, (0,))
    return [Group(prompt, samples[2 * i : 2 * i + 2], [Verdict("wrong", 0.0, None, 0.0)] * 2) for i, prompt in enumerate(PROMPTS)]


@pytest.fixture
def start(model_folder: Path) -> Policy:
    """A policy some way off."""
    found = load_policy(ModelConfig(name=str(model_folder), share_prompts=False), CPU)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return found


def with_reference(groups: list[Group], start: Policy, config: TrainConfig, advantages: list[float] = ADVANTAGES) -> Weighed:
    batch = weighed(groups, advantages, [0.0] * 8)
    scores = score(start, batch.samples, batch.layout.rows, config)
    return replace(batch, reference=scores.flat(batch.layout)["logprobs"])


def with_objective(**values: Any) -> TrainConfig:
    return replace(CONFIG, objective=ObjectiveConfig(**values))


def gradients(policy: Policy, batch: Weighed, config: TrainConfig) -> tuple[dict[str, torch.Tensor], dict[str, float | None]]:
    """From Adam's first moments after one update."""
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1.0, betas=(0.0, 0.99), weight_decay=0.0)
    result = update_policy(policy, optimizer, batch, config, step=1, method=PLAIN)
    return {name: optimizer.state[p]["exp_avg"].clone() for name, p in policy.model.named_parameters()}, result.metrics


def in_float64(policy: Policy, start: Policy, batch: Weighed, config: TrainConfig) -> tuple[Any, float, float]:
    """The definition, sample by sample, by autograd on full logits: gradients, loss, mean divergence. k is written as TRL writes it: with
    d' = reference - policy, k3 is exp(d') - d' - 1."""
    model, reference = (copy.deepcopy(p.model).double() for p in (policy, start))
    objective, samples = config.objective, batch.samples
    tokens, total, mean = sum(len(s.tokens) for s in samples), torch.zeros((), dtype=torch.float64), 0.0
    for sample, advantage in zip(samples, batch.batch.advantages, strict=True):
        ids, first = torch.tensor([sample.prompt_tokens + sample.tokens]), len(sample.prompt_tokens) - 1

        def logprobs(net: Any, ids: torch.Tensor = ids, first: int = first, sample: Any = sample) -> torch.Tensor:
            logits = net(input_ids=ids).logits[0, first:-1] / config.rollout.temperature
            return torch.log_softmax(logits, -1).gather(1, torch.tensor(sample.tokens)[:, None])[:, 0]

        ours = logprobs(model)
        with torch.no_grad():
            away = logprobs(reference)
        behind = away - ours
        k = {"k1": -behind, "abs_k1": behind.abs(), "k2": behind**2 / 2, "k3": behind.exp() - behind - 1}[objective.kl]
        ratio = (ours - ours.detach()).exp()
        if objective.kind == "gspo":
            ratio = (ours - ours.detach()).mean().exp()
        term = -ratio * advantage + objective.kl_coef * k
        if objective.kind == "cispo":
            term = -advantage * ours + objective.kl_coef * k
        scale = {"token_mean": tokens, "sequence_mean": len(samples) * len(sample.tokens), "constant": len(samples) * 6}
        total = total + term.sum() / scale[objective.aggregation]
        mean += float(k.detach().sum()) / tokens
    total.backward()
    return {name: p.grad for name, p in model.named_parameters()}, total.item(), mean


@pytest.mark.parametrize("kl", KINDS)
@pytest.mark.parametrize(
    "objective",
    [{}, {"aggregation": "sequence_mean"}, {"aggregation": "constant", "kind": "cispo"}, {"kind": "gspo", "aggregation": "sequence_mean"}],
    ids=["ppo", "sequence_mean", "cispo", "gspo"],
)
def test_the_gradient_is_that_of_the_definition(
    policy: Policy, start: Policy, groups: list[Group], objective: dict[str, Any], kl: str
) -> None:
    """On micro-batches, with samples that have no advantage."""
    config = with_objective(kl_coef=COEF, kl=kl, **objective)
    expected, loss, mean = in_float64(policy, start, with_reference(groups, start, config), config)
    batch = with_reference(groups, start, config)
    found, metrics = gradients(policy, batch, config)
    size = math.sqrt(sum(float(g.square().sum()) for g in expected.values()))
    wrong = math.sqrt(sum(float((found[name] - g).square().sum()) for name, g in expected.items()))
    assert size > 1e-2 and wrong < 1e-5 * size
    plain = with_objective(**objective)
    without, _, _ = in_float64(
        start, start, weighed(groups, ADVANTAGES, [0.0] * 8), replace(plain, objective=replace(plain.objective, kl=kl))
    )
    assert any((without[name] - g).abs().max() > 1e-3 for name, g in expected.items()), "the penalty matters"
    assert metrics["policy/kl_ref"] == pytest.approx(mean, rel=1e-4)
    if objective.get("kind") != "cispo":  # its loss is a value of another form
        assert metrics["policy/loss"] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("mode", ["measure", "skip"])
def test_a_sample_with_nothing_but_the_penalty_is_live(policy: Policy, start: Policy, groups: list[Group], updates: int, mode: Any) -> None:
    config = with_objective(kl_coef=COEF)
    config = replace(config, optim=replace(config.optim, dead_samples=mode, updates_per_step=updates))
    batch, before = with_reference(groups, start, config, [0.0] * 8), [p.clone() for p in policy.model.parameters()]
    assert all(batch.has_signal()) and not any(replace(batch, reference=None).has_signal())
    _, metrics = gradients(policy, batch, config)
    assert metrics["optim/dead_frac"] == 0.0 and metrics["optim/grad_norm"] > 0.0
    assert any(not torch.equal(p, q) for p, q in zip(policy.model.parameters(), before, strict=True))


def test_masked_samples_stay_out(policy: Policy, start: Policy, groups: list[Group]) -> None:
    batch = weighed(groups, ADVANTAGES, [0.0] * 8, trained=[True] * 7 + [False])
    assert replace(batch, reference=batch.column(None, -1.0)).has_signal() == [True] * 7 + [False]


def test_without_a_penalty_nothing_changes(policy: Policy, model_folder: Path, groups: list[Group]) -> None:
    other = load_policy(ModelConfig(name=str(model_folder), share_prompts=False), CPU)
    a, metrics = gradients(policy, weighed(groups, ADVANTAGES, [0.0] * 8), CONFIG)
    b, _ = gradients(other, weighed(groups, ADVANTAGES, [0.0] * 8), with_objective(kl="k1"))
    assert all(torch.equal(a[name], b[name]) for name in a) and "policy/kl_ref" not in metrics


def test_the_share_of_the_bonus_is_without_the_penalty(policy: Policy, start: Policy, groups: list[Group], model_folder: Path) -> None:
    """With no bonus it is 0, however strong the penalty."""
    config = with_objective(kl_coef=COEF)
    config = replace(config, run=replace(config.run, bonus_share_every=1))
    _, metrics = gradients(policy, with_reference(groups, start, config), config)
    assert metrics["optim/bonus_share"] == 0.0


def test_the_reference_is_a_frozen_copy(policy: Policy, model_folder: Path) -> None:
    reference = load_reference(ModelConfig(name=str(model_folder)), policy)
    assert not any(p.requires_grad for p in reference.policy.model.parameters())
    assert not {p.data_ptr() for p in reference.policy.model.parameters()} & {p.data_ptr() for p in policy.model.parameters()}
    with reference.scoring() as first:
        assert first is reference.policy
    digest = frozen_digest(policy, reference)
    assert digest == weights_digest(policy.model.parameters()) and frozen_digest(policy, None) is None
    with torch.no_grad():
        next(iter(reference.policy.model.parameters()))[0, 0] += 1e-6
    assert frozen_digest(policy, reference) != digest


@pytest.fixture
def config(config: TrainConfig) -> TrainConfig:
    penalty = ObjectiveConfig(kl_coef=0.5, kl="k2")
    return replace(
        config, reward=RewardConfig(kind="tests.train.rewards.digit_share", workers=1), objective=penalty, method=EntropyControlConfig()
    )


def test_two_and_two_steps_are_four(config: TrainConfig, tmp_path: Path) -> None:
    """The reference of the resumed run is the first policy, not that of the checkpoint."""
    whole = train(changed(config, "run", out=str(tmp_path / "whole")))
    train(changed(config, "run", steps=2))
    train(config, resume=True)
    assert_same_run(whole, Path(config.run.out))
    found = [row["policy/kl_ref"] for row in read_metrics(whole)]
    assert len(set(found)) == 4 and all(value > 0 for value in found), "its second updates are away from the start"
    assert json.loads((checkpoint.latest(whole) / "state.json").read_text())["frozen"]


def test_another_reference_is_refused_at_resume(config: TrainConfig, untied_folder: Path) -> None:
    train(changed(config, "run", steps=2))
    with pytest.raises(ValueError, match=r"model.name must be what the run began with .*, got other weights than at .*step_000002"):
        train(changed(config, "model", name=str(untied_folder)), resume=True)


def test_the_penalty_holds_the_policy(config: TrainConfig, tmp_path: Path) -> None:
    config = changed(config, "optim", lr=1e-2, updates_per_step=1)
    config = changed(config, "run", steps=6)
    far = train(changed(changed(config, "objective", kl_coef=1e-6), "run", out=str(tmp_path / "far")))
    near = train(changed(config, "objective", kl_coef=5.0))
    assert read_metrics(near)[-1]["policy/kl_ref"] < 0.5 * read_metrics(far)[-1]["policy/kl_ref"]


def sharded(config: TrainConfig) -> Any:
    return stable_rows(train(config))


def test_two_ranks_train_as_one(config: TrainConfig, tmp_path: Path) -> None:
    """Policy and reference in shards; one process goes on, and knows the reference."""
    one = train(changed(config, "run", out=str(tmp_path / "one"), steps=2))
    found, _ = spawn(sharded, 2, tmp_path, changed(config, "run", steps=2))
    for mine, theirs in zip(stable_rows(one), found, strict=True):
        for name in ("policy/kl_ref", "optim/grad_norm", "optim/dead_frac", "reward/mean"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name
    assert len(stable_rows(train(changed(config, "run", steps=3), resume=True))) == 3


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: changed(c, "objective", kl_coef=-0.1), r"objective.kl_coef must be >= 0, got -0.1"),
        (lambda c: changed(c, "objective", kl_coef=math.nan), r"objective.kl_coef must be >= 0, got nan"),
        (lambda c: changed(c, "objective", kl_coef=math.inf), r"objective.kl_coef must be >= 0, got inf"),
        (lambda c: changed(c, "rollout", top_p=0.9), r"rollout.top_p must be 1 for objective.kl_coef > 0, got 0.9"),
        (
            lambda c: replace(c, method=method_class("kl_cov").Config()),
            r"objective.kl_coef must be 0 for method.kind kl_cov, which has a divergence of its own, got 0.5",
        ),
    ],
    ids=["negative", "nan", "inf", "top_p", "kl_cov"],
)
def test_what_is_refused(config: TrainConfig, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(change(config))


def test_doctor_tells_the_memory(config: TrainConfig) -> None:
    needs = predict_memory(config)
    assert needs["frozen reference (float32)"] == needs["parameters (float32)"]
    assert "frozen reference (float32)" not in predict_memory(changed(config, "objective", kl_coef=0.0))
