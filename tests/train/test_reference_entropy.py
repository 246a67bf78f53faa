"""The first policy's entropies, for methods that need them: whose they are, over ranks, adapters and resume, and beside a KL penalty."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aer_kernels import EntropyControlConfig
from aer_kernels.methods import TokenBatch, TokenTargetsConfig, TokenTerms
from aer_train.clock import Clock
from aer_train.config.tree import ModelConfig, ObjectiveConfig, RewardConfig, TrainConfig
from aer_train.doctor import predict_memory
from aer_train.model import load_policy, load_reference
from aer_train.rollout.hf import HFRollout
from aer_train.run import checkpoint
from aer_train.step.credit import assign_credit
from aer_train.step.weighing import weigh_step
from aer_train.trainer import train
from aer_train.types import Group, Prompt, Verdict
from tests.ranks import spawn
from tests.train.same_run import changed, stable_rows
from tests.train.test_methods import Neutral, NeutralConfig, weights

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


class Curious(Neutral):
    """Neutral, but keeps what it is shown."""

    Config = NeutralConfig
    needs_entropy = True
    also_needs = frozenset({"reference_entropy"})
    seen: TokenBatch

    def terms(self, tokens: TokenBatch) -> TokenTerms:
        self.seen = tokens
        return super().terms(tokens)


@pytest.fixture
def config(config: TrainConfig) -> TrainConfig:
    method = TokenTargetsConfig(tau=1.5, rho=1.0, min_coef=-0.3)
    return changed(replace(config, method=method, reward=RewardConfig(kind="tests.train.rewards.digit_share", workers=1)), "optim", lr=1e-2)


@pytest.mark.parametrize("adapters", [0, 4])
@pytest.mark.parametrize("top_p", [1.0, 0.7])
@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_they_are_the_first_policys_on_the_same_tokens(config: TrainConfig, adapters: int, top_p: float, kl_coef: float) -> None:
    """With the policy some way off, in one row each and in full logits; one pass gives a KL penalty its log-probs too."""
    config = changed(changed(config, "model", lora_rank=adapters), "rollout", top_p=top_p)
    config = changed(config, "objective", kl_coef=kl_coef)
    policy, plain = load_policy(config.model, CPU), load_policy(ModelConfig(name=config.model.name), CPU)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    prompts = [Prompt("0", "12=?", ""), Prompt("1", "7", "")]
    samples = HFRollout(policy, config.rollout).generate(prompts, 4, (0,))
    groups = [Group(p, samples[4 * i : 4 * i + 4], [Verdict("wrong", 0.0, None, 0.0)] * 4) for i, p in enumerate(prompts)]
    batch, method = assign_credit(groups, config), Curious(NeutralConfig())
    weighed, _ = weigh_step(policy, method, batch, config, 1, Clock(), load_reference(config.model, policy))
    expected, logprobs = [], []
    for sample in samples:
        ids, first = torch.tensor([sample.prompt_tokens + sample.tokens]), len(sample.prompt_tokens) - 1
        with torch.no_grad():
            p = plain.head(plain.hidden(ids, torch.ones_like(ids)))[0, first:-1].double().softmax(-1)
        logprobs += p.log().gather(1, torch.tensor(sample.tokens)[:, None])[:, 0].tolist()
        if top_p < 1:
            values, order = p.sort(descending=True)
            p = torch.zeros_like(p).scatter(1, order, torch.where(values.cumsum(-1) - values < top_p, values, 0.0))
            p = p / p.sum(-1, keepdim=True)
        expected += torch.special.entr(p).sum(-1).tolist()
    found = method.seen.need("reference_entropy")
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-5)
    assert (found - method.seen.need("entropy")).abs().max() > 1e-2, "the policy has moved"
    assert (weighed.reference is None) == (kl_coef == 0)
    if weighed.reference is not None and top_p == 1:
        assert weighed.reference.tolist() == pytest.approx(logprobs, abs=1e-4)


def test_a_run_starts_at_its_own_entropy(config: TrainConfig) -> None:
    rows = stable_rows(train(config))
    assert rows[0]["entropy/controlled"] == pytest.approx(1.0, rel=1e-5) and rows[0]["entropy/target"] == 1.5
    assert all(row["entropy/controlled"] != pytest.approx(1.0, rel=1e-3) for row in rows[1:])
    assert "policy/kl_ref" not in rows[0], "no penalty"


def test_a_penalty_beside_it_is_the_same_penalty(config: TrainConfig, tmp_path: Path) -> None:
    """The pass of the first policy serves both; the pass of the present one, that the method needs, is packed otherwise than GRPO's."""
    found = []
    for name, method in (("off", EntropyControlConfig(kind="off")), ("neutral", TokenTargetsConfig(min_coef=0.0, max_coef=0.0))):
        objective = ObjectiveConfig(kl_coef=0.5)
        found.append(train(changed(replace(config, method=method, objective=objective), "run", out=str(tmp_path / name))))
    rows = [[row["policy/kl_ref"] for row in stable_rows(folder)] for folder in found]
    assert rows[0] == pytest.approx(rows[1], rel=1e-5) and rows[0][-1] > 0.1
    a, b = map(weights, found)
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapters", [0, 4])
def test_two_and_two_steps_are_four(config: TrainConfig, tmp_path: Path, adapters: int) -> None:
    """The first policy of a resumed run is that of the start, not that of the checkpoint."""
    config = changed(config, "model", lora_rank=adapters)
    whole = train(changed(config, "run", out=str(tmp_path / "whole")))
    train(changed(config, "run", steps=2))
    train(config, resume=True)
    assert stable_rows(whole) == stable_rows(Path(config.run.out))
    states = [json.loads((checkpoint.latest(folder) / "state.json").read_text()) for folder in (whole, Path(config.run.out))]
    assert states[0]["method"] == states[1]["method"] and states[0]["frozen"] == states[1]["frozen"] is not None


def test_another_first_policy_is_refused_at_resume(config: TrainConfig, untied_folder: Path) -> None:
    train(changed(config, "run", steps=2))
    with pytest.raises(ValueError, match=r"model.name must be what the run began with .*, got other weights than at .*step_000002"):
        train(changed(config, "model", name=str(untied_folder)), resume=True)


def rows_of(config: TrainConfig) -> Any:
    return stable_rows(train(config))


@pytest.mark.parametrize("adapters", [0, 4])
def test_two_ranks_hold_what_one_does(config: TrainConfig, tmp_path: Path, adapters: int) -> None:
    config = changed(changed(config, "run", steps=2), "model", lora_rank=adapters)
    one = rows_of(changed(config, "run", out=str(tmp_path / "one")))
    found, _ = spawn(rows_of, 2, tmp_path, config)
    for mine, theirs in zip(one, found, strict=True):
        for name in ("entropy/controlled", "entropy/coef", "entropy/coef_mean_token", "optim/grad_norm", "reward/mean"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name


def test_doctor_counts_the_frozen_copy(config: TrainConfig) -> None:
    assert predict_memory(config)["frozen reference (float32)"] > 0
    assert not any("reference" in name for name in predict_memory(replace(config, method=EntropyControlConfig())))
