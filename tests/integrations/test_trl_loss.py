"""What a method's terms do to TRL's loss, for every loss type: its gradients at log-probs and entropies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the trl extra is not installed")

from trl import GRPOTrainer

from aer_kernels import EntropyControlConfig, entropy_slopes
from aer_kernels.integrations import trl_loss
from tests.integrations.trl_setup import (
    ACTIVE,
    FIXED,
    CustomConfig,
    fixed_rollouts,
    logged,
    make,
    nothing_is_left_patched,  # noqa: F401  a fixture
    one_loss,
    pretend_vllm,
    share_of_digits,
    trained,
)

pytestmark = pytest.mark.slow

LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo", "gspo"]


def level(loss_type: str) -> dict[str, Any]:
    """Options of a loss type; GSPO is grpo with ratios of whole responses."""
    return {
        "loss_type": "grpo" if loss_type == "gspo" else loss_type,
        "importance_sampling_level": "sequence" if loss_type in ("luspo", "gspo") else "token",
        "epsilon_high": 5.0 if loss_type == "cispo" else 0.2,
    }


@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_loss_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss_type: str) -> None:
    """TRL's own aggregation is what `aggregation` says; the bonus is the mean over the step's tokens, whatever the loss type."""
    options = {"entropy": FIXED, "rollout_func": fixed_rollouts()}
    trainer = make(tmp_path, steps=1, reward=share_of_digits, options=options, **level(loss_type))
    by_logprob, by_entropy, mask, inputs = one_loss(trainer, monkeypatch)
    tokens = mask.sum()
    assert len(set(mask.sum(1).tolist())) > 1, "responses of several lengths"
    n = trl_loss.aggregation(trainer, mask, tokens)
    torch.testing.assert_close(by_logprob, -n * inputs["advantages"][:, None] * mask, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(by_entropy, -FIXED.coef * mask / tokens)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_slopes_are_those_of_trls_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss_type: str) -> None:
    """What kind balance is told: first-order changes of the entropy by TRL's own gradient, whatever the loss type."""
    found = []
    real = trl_loss.slopes
    monkeypatch.setattr(trl_loss, "slopes", lambda *args: found.append((real(*args), *args)) or found[-1][0])
    options = {"entropy": EntropyControlConfig(kind="balance", target=9.0), "rollout_func": fixed_rollouts()}
    trainer = trained(tmp_path, reward=share_of_digits, options=options, num_iterations=2, steps=4, **level(loss_type))
    assert len(found) == 4 and trainer.method.state_dict()["updates"] == 2
    for number, (slopes, _, _, inputs, logprobs, entropy) in enumerate(found):
        mask, tokens = trl_loss.loss_mask(inputs), trl_loss.step_tokens(trainer, inputs)
        advantages = inputs["advantages"][:, None] * trl_loss.aggregation(trainer, mask, tokens) * tokens
        weights = inputs["aer_coef"] * (logprobs - inputs["old_per_token_logps"]).exp()
        expected = entropy_slopes(logprobs, entropy, advantages=advantages, weights=weights, loss_mask=mask)
        torch.testing.assert_close(slopes.bonus, expected.bonus)
        if number % 2 == 0:  # the policy has not moved since it sampled: ratios are 1
            torch.testing.assert_close(slopes.policy, expected.policy, rtol=1e-4, atol=1e-6)


def test_weight_and_shift_act_on_the_advantages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"method": CustomConfig(weight=0.5, shift=0.25), "rollout_func": fixed_rollouts()}
    trainer = make(tmp_path, steps=1, reward=share_of_digits, options=options)
    by_logprob, by_entropy, mask, inputs = one_loss(trainer, monkeypatch)
    batch = trainer.method.seen[0]
    assert by_entropy is None
    flat = inputs["advantages"][mask.bool()]
    torch.testing.assert_close(flat.sort().values, 0.5 * (batch.advantages + 0.25).sort().values)
    torch.testing.assert_close(by_logprob, -inputs["advantages"] * mask / mask.sum(), rtol=1e-5, atol=1e-9)


def test_divergence_and_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a policy that has moved: |k1| pulls each token back, with TRL's aggregation; bounds of 0 clip what moved the right way."""
    for coef, clip in ((3.0, None), (None, 0.0)):
        config = CustomConfig(divergence=coef, clip=clip)
        losses, seen = [], []
        real, added = GRPOTrainer._compute_loss, trl_loss.added

        def compute(self, model, inputs, real=real, seen=seen):
            seen.append((self.epsilon_low, self.epsilon_high))
            return real(self, model, inputs)

        def watched(trainer, loss, scale, inputs, logprobs, entropy, added=added, losses=losses):
            found = added(trainer, loss, scale, inputs, logprobs, entropy)
            mask = trl_loss.loss_mask(inputs)
            losses.append((found - loss, ((logprobs - inputs["old_per_token_logps"]).abs() * mask).sum(1), mask.sum(1)))
            return found

        with monkeypatch.context() as patch:
            patch.setattr(GRPOTrainer, "_compute_loss", compute)
            patch.setattr(trl_loss, "added", watched)
            trainer = trained(tmp_path, steps=4, options={"method": config}, loss_type="grpo", num_iterations=4)
        assert seen == [(0.2, 0.2) if clip is None else (clip, clip)] * 4 and (trainer.epsilon_low, trainer.epsilon_high) == (0.2, 0.2)
        for found, distance, count in losses:
            expected = 0.0 if coef is None else coef * (distance / count.clamp(min=1)).mean()
            torch.testing.assert_close(found, torch.as_tensor(expected).expand_as(found))
        assert losses[0][1].sum() == 0 < losses[-1][1].sum()


def test_the_bonus_is_not_weighed_by_importance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With vLLM's log-probs: the policy term has TRL's importance weights, the bonus and what is held have not; surplus needs no pass."""
    options = {"entropy": FIXED, "rollout_func": fixed_rollouts(with_logprobs=True)}
    trainer = pretend_vllm(make(tmp_path, steps=1, reward=share_of_digits, options=options))
    by_logprob, by_entropy, mask, inputs = one_loss(trainer, monkeypatch)
    ratio = inputs["importance_sampling_ratio"]
    assert not torch.allclose(ratio, torch.ones_like(ratio))
    torch.testing.assert_close(by_logprob, -(ratio * inputs["advantages"][:, None] * mask) / mask.sum(), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(by_entropy, -FIXED.coef * mask / mask.sum())
    passes = []
    real = GRPOTrainer._get_per_token_logps_and_entropies
    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", lambda self, *a, **k: passes.append(1) or real(self, *a, **k))
    options["entropy"] = ACTIVE
    trainer = pretend_vllm(make(tmp_path, steps=2, reward=share_of_digits, options=options))
    trainer.train()
    assert len(passes) == 4 and logged(trainer, "aer/coef")[1] > 0, "the pass for the old log-probs, and the loss's"
    trainer = pretend_vllm(make(tmp_path, steps=2, reward=share_of_digits, options=options, vllm_importance_sampling_correction=False))
    trainer.train()
    assert len(passes) == 6 and logged(trainer, "aer/coef")[1] > 0, "the loss's alone"
