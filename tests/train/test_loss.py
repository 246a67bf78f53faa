from dataclasses import replace

import pytest
import torch
from torch import Tensor

from aer_kernels.methods import TokenTerms
from aer_train.config.tree import ObjectiveConfig, RolloutConfig, TrainConfig
from aer_train.model import Policy
from aer_train.rollout.hf import HFRollout
from aer_train.step.batching import MicroBatch, micro_batches
from aer_train.step.loss import measure, policy_loss
from aer_train.step.objective import Objective, make_objective
from aer_train.types import Prompt, Sample
from tests.train.worth import columns

CPU = torch.device("cpu")
TEMPERATURE = 0.8
OBJECTIVES = {
    "token_mean": ObjectiveConfig(aggregation="token_mean"),
    "sequence_mean": ObjectiveConfig(aggregation="sequence_mean"),
    "constant": ObjectiveConfig(aggregation="constant"),
    "dual_clip": ObjectiveConfig(dual_clip=1.5),
    "cispo": ObjectiveConfig(kind="cispo", clip_high=0.28),
    "gspo": ObjectiveConfig(kind="gspo", aggregation="sequence_mean"),
}


@pytest.fixture
def samples(policy: Policy) -> list[Sample]:
    prompts = [Prompt(str(i), text, "") for i, text in enumerate(["12=?", "7", "345+6=?"])]
    return HFRollout(policy, RolloutConfig(max_new_tokens=12, temperature=TEMPERATURE)).generate(prompts, 4, (0,))


def pack(samples: list[Sample], tokens_per_microbatch: int, on_policy: bool = False) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(1)
    draw = lambda n: torch.randn(n, generator=generator)  # noqa: E731
    advantages, coef = draw(len(samples)).tolist(), draw(len(samples)).abs().tolist()
    old = None if on_policy else [(torch.tensor(s.logprobs) + 0.3 * draw(len(s.tokens))).tolist() for s in samples]
    worth = columns(samples, advantages, coef, old)
    return micro_batches(samples, range(len(samples)), worth, tokens_per_microbatch=tokens_per_microbatch, pad_id=0, device=CPU)


def objective_of(config: ObjectiveConfig, samples: list[Sample]) -> Objective:
    settings = TrainConfig(objective=config, rollout=RolloutConfig(max_new_tokens=12, temperature=TEMPERATURE))
    return make_objective(settings, TokenTerms(), samples)


def update_gradient(policy: Policy, batches: list[MicroBatch], config: ObjectiveConfig, samples: list[Sample]) -> tuple[float, Tensor]:
    policy.model.zero_grad()
    objective, total = objective_of(config, samples), 0.0
    for batch in batches:
        output = policy_loss(policy, batch, objective)
        output.loss.backward()
        total += output.loss.item()
    return total, torch.cat([p.grad.flatten() for p in policy.model.parameters()])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_do_not_change_the_gradient(policy: Policy, samples: list[Sample], name: str) -> None:
    whole_loss, whole = update_gradient(policy, pack(samples, 10**6), OBJECTIVES[name], samples)
    cut_loss, cut = update_gradient(policy, pack(samples, 1), OBJECTIVES[name], samples)
    assert len(pack(samples, 1)) == 12 and len(pack(samples, 10**6)) == 1
    assert cut_loss == pytest.approx(whole_loss, rel=1e-5)
    assert (cut - whole).norm() < 1e-6 * whole.norm()
    assert whole.norm() > 1e-3


def reference_loss(policy: Policy, samples: list[Sample], batch: MicroBatch, config: ObjectiveConfig) -> Tensor:
    """The definition, sample by sample, on full logits."""
    policy_term, bonus, tokens = torch.zeros(()), torch.zeros(()), sum(len(s.tokens) for s in samples)
    for b, row in enumerate(batch.rows):
        sample = samples[row]
        ids = torch.tensor([sample.prompt_tokens + sample.tokens])
        logits = policy.model(input_ids=ids).logits[0, len(sample.prompt_tokens) - 1 : -1] / TEMPERATURE
        distribution = torch.distributions.Categorical(logits=logits)
        logprobs = distribution.log_prob(torch.tensor(sample.tokens))
        ratio = (logprobs - batch.old_logprobs[b][batch.loss_mask[b]]).exp()
        advantage = batch.advantages[b][batch.loss_mask[b]][0]
        clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
        if config.kind == "gspo":
            ratio = ratio.log().mean().exp()
            clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
        terms = torch.minimum(ratio * advantage, clipped * advantage)
        if config.kind == "cispo":
            terms = clipped.detach() * advantage * logprobs
        if config.dual_clip is not None and advantage < 0:
            terms = torch.maximum(terms, config.dual_clip * advantage)
        scale = {"token_mean": tokens, "sequence_mean": len(samples) * terms.numel(), "constant": len(samples) * 12}
        policy_term = policy_term + terms.sum() / scale[config.aggregation]
        bonus = bonus + (batch.entropy_coef[b][batch.loss_mask[b]] * distribution.entropy()).sum() / tokens
    return -policy_term - bonus


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_is_its_definition(policy: Policy, samples: list[Sample], name: str) -> None:
    (batch,) = pack(samples, 10**6)
    loss, gradient = update_gradient(policy, [batch], OBJECTIVES[name], samples)
    policy.model.zero_grad()
    expected = reference_loss(policy, samples, batch, OBJECTIVES[name])
    expected.backward()
    expected_gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient - expected_gradient).norm() < 1e-5 * expected_gradient.norm()


def test_strictly_on_policy_the_ratio_is_one(policy: Policy, samples: list[Sample]) -> None:
    (batch,) = pack(samples, 10**6, on_policy=True)
    output = policy_loss(policy, batch, objective_of(ObjectiveConfig(), samples))
    assert float(output.metrics["ratio_mean"]) == 1.0 and float(output.metrics["clip_frac"]) == 0.0
    expected = -(batch.advantages + batch.entropy_coef * output.entropy).sum() / batch.loss_mask.sum()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_measure_agrees_with_the_rollout_and_the_loss(policy: Policy, samples: list[Sample]) -> None:
    (batch,) = pack(samples, 10**6)
    logprobs, entropy = measure(policy, batch, temperature=TEMPERATURE).values()
    assert not logprobs.requires_grad
    for b, row in enumerate(batch.rows):
        assert logprobs[b][batch.loss_mask[b]].tolist() == pytest.approx(samples[row].logprobs, abs=1e-4)
    for config in OBJECTIVES.values():
        output = policy_loss(policy, batch, objective_of(config, samples))
        assert torch.allclose(output.logprobs, logprobs, atol=1e-6) and torch.allclose(output.entropy, entropy, atol=1e-6)
        assert not output.entropy.requires_grad


def test_memory_budget_does_not_change_the_loss(policy: Policy, samples: list[Sample]) -> None:
    (batch,) = pack(samples, 10**6)
    losses = [
        policy_loss(policy, batch, replace(objective_of(ObjectiveConfig(), samples), memory_budget=budget)).loss.item()
        for budget in (None, 40_000)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_autocast_is_close(policy: Policy, samples: list[Sample]) -> None:
    config = ObjectiveConfig()
    _, exact = update_gradient(policy, pack(samples, 10**6), config, samples)
    _, rough = update_gradient(replace(policy, dtype=torch.bfloat16), pack(samples, 10**6), config, samples)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).norm() < 0.1 * exact.norm()


def test_denominators_by_hand() -> None:
    samples = [Sample(0, i, [1], [2] * n, [-1.0] * n, "", True) for i, n in enumerate([3, 5])]
    expected = {"token_mean": 8.0, "sequence_mean": 2.0, "constant": 24.0, "gspo": 2.0}
    for name, denominator in expected.items():
        found = objective_of(OBJECTIVES[name], samples)
        assert (found.denominator, found.entropy_denominator) == (denominator, 8.0), name


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_a_method_says_of_each_token(policy: Policy, samples: list[Sample], name: str) -> None:
    """Weights scale the advantage of each token, divergence pulls its log-prob back: by definition, on the log-probs themselves."""
    (batch,) = pack(samples, 10**6)
    generator = torch.Generator().manual_seed(5)
    weights, divergence, shift = (torch.rand(batch.targets.shape, generator=generator) * batch.loss_mask for _ in range(3))
    worth = replace(batch, weights=weights, divergence_coef=divergence, advantages=(batch.advantages + shift) * batch.loss_mask)
    folded = replace(worth, weights=None, divergence_coef=None, advantages=worth.advantages * weights)
    objective = objective_of(OBJECTIVES[name], samples)
    gradients, losses = [], []
    for micro in (worth, folded):
        policy.model.zero_grad()
        loss = policy_loss(policy, micro, objective).loss
        if micro is folded:
            logits = policy.model(input_ids=micro.input_ids, attention_mask=micro.attention_mask).logits / TEMPERATURE
            logprobs = torch.log_softmax(logits, -1).gather(-1, micro.targets.clamp(min=0)[..., None])[..., 0]
            terms = divergence * (logprobs - batch.old_logprobs).abs()
            if objective.by_response:
                terms = terms / batch.loss_mask.sum(1, keepdim=True)
            loss = loss + terms.sum() / objective.denominator
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in policy.model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()


def test_a_method_moves_the_bounds(samples: list[Sample]) -> None:
    config = TrainConfig(objective=ObjectiveConfig(clip_low=0.2, clip_high=0.28))
    assert make_objective(config, TokenTerms(), samples).config is config.objective
    moved = make_objective(config, TokenTerms(clip_high=0.5, entropy_scale=0.3), samples)
    assert (moved.config.clip_low, moved.config.clip_high, moved.entropy_scale) == (0.2, 0.5, 0.3)
