"""AER and other methods inside TRL's GRPOTrainer, against TRL itself."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the trl extra is not installed")

from trl import GRPOTrainer, RLOOTrainer
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils as trl_utils

from aer_kernels import BELOW_START, EntropyControlConfig
from aer_kernels.integrations import trl as adapter
from aer_kernels.integrations.trl import AERGRPOTrainer, AERMixin
from aer_kernels.methods import ForkingTokensConfig, PositiveAdvantageConfig, method_class
from tests.integrations.trl_setup import (
    ACTIVE,
    FIXED,
    GROUP,
    ROWS,
    TARGETS,
    CustomConfig,
    correct,
    fixed_rollouts,
    length,
    logged,
    lora,
    make,
    model,
    nothing_is_left_patched,  # noqa: F401  a fixture
    one_loss,
    share_of_digits,
    trained,
    weights,
)

pytestmark = pytest.mark.slow

PLAIN = EntropyControlConfig(target=9.0)
"""The same without a pass of its own."""
TWICE = {"steps_per_generation": 2, "gradient_accumulation_steps": 1}
"""Two optimizer steps on each batch of rollouts."""

# equal to TRL where it must be


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_a_fixed_coefficient_is_trls_own_bit_for_bit(tmp_path: Path, loss_type: str) -> None:
    theirs = trained(tmp_path, cls=GRPOTrainer, entropy_coef=FIXED.coef, loss_type=loss_type, steps=6)
    ours = trained(tmp_path, options={"entropy": FIXED}, loss_type=loss_type, steps=6)
    assert torch.equal(weights(theirs), weights(ours))
    assert not torch.equal(weights(ours), weights(trained(tmp_path, cls=GRPOTrainer, loss_type=loss_type, steps=6)))


NEUTRAL = CustomConfig(weight=1.0, shift=0.0, entropy=0.0, divergence=0.0, clip=0.2, needs_entropy=True)


@pytest.mark.parametrize("options", [{"entropy": EntropyControlConfig(kind="off")}, {"method": NEUTRAL}, {"method": CustomConfig()}])
def test_what_is_neutral_is_plain_grpo_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    changes: dict[str, Any] = {"num_iterations": 2, "beta": 0.04, "top_entropy_quantile": 0.5}
    plain = trained(tmp_path, cls=GRPOTrainer, **changes)
    assert torch.equal(weights(plain), weights(trained(tmp_path, options=options, **changes)))


# one update a batch of rollouts, whatever the cuts


@pytest.mark.parametrize(
    "options",
    [
        {"entropy": ACTIVE},
        {"entropy": EntropyControlConfig(target=9.0, held="difficult")},
        {"entropy": EntropyControlConfig(kind="balance", target=9.0)},
        {"method": PositiveAdvantageConfig(target=9.0, start=0.5)},
        {"method": ForkingTokensConfig(share=0.3)},
        {"method": TARGETS},
    ],
)
def test_micro_batches_change_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    changes: dict[str, Any] = {"reward": share_of_digits, "options": options | {"rollout_func": fixed_rollouts()}}
    changes |= {"beta": 0.04} if options.get("method") is TARGETS else {}
    whole = trained(tmp_path, **changes)
    cut = trained(tmp_path, per_device_train_batch_size=ROWS // 4, gradient_accumulation_steps=4, **changes)
    torch.testing.assert_close(weights(whole), weights(cut), rtol=0, atol=3e-5)
    for name in [name for name in whole.state.log_history[0] if name.startswith("aer/")]:
        assert logged(cut, name) == pytest.approx(logged(whole, name), rel=1e-4, nan_ok=True), name


@pytest.mark.parametrize("entropy", [ACTIVE, PLAIN])
@pytest.mark.parametrize(
    ("changes", "updates"),
    [
        ({}, 4),
        (TWICE, 2),
        ({"num_iterations": 2}, 2),
        ({"num_iterations": 2, "beta": 0.04, **TWICE}, 1),
        ({"steps_per_generation": 1, "gradient_accumulation_steps": 2}, 4),
    ],
)
def test_one_update_a_batch_of_rollouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entropy: EntropyControlConfig, changes: dict[str, Any], updates: int
) -> None:
    """Every token counts once, with the entropy of the policy that sampled it, however often the policy moves on those samples."""
    passes, measured = [], []
    trainer = make(tmp_path, steps=4, options={"entropy": entropy}, **changes)
    real = trainer._generate_and_score_completions

    def generate(inputs):
        out = real(inputs)
        ids, mask = (torch.cat([out[f"prompt_{x}"], out[f"completion_{x}"]], 1) for x in ("ids", "mask"))
        with torch.no_grad():
            width = out["completion_ids"].shape[1]
            found = GRPOTrainer._get_per_token_logps_and_entropies(trainer, trainer.model, ids, mask, width, compute_entropy=True)
        passes.append((float((found[1] * out["completion_mask"]).sum()), int(out["completion_mask"].sum())))
        return out

    monkeypatch.setattr(trainer, "_generate_and_score_completions", generate)
    update = trainer.method.update
    monkeypatch.setattr(trainer.method, "update", lambda found: measured.append(found) or update(found))
    trainer.train()
    assert len(measured) == updates == trainer.method.state_dict()["updates"]
    each = len(passes) // updates
    for number, found in enumerate(measured):
        part = passes[number * each : (number + 1) * each]
        assert found.tokens == sum(count for _, count in part)
        assert found.entropy == pytest.approx(sum(total for total, _ in part), rel=1e-4)
        assert found.unsolved is not None and found.responses == len(part) * ROWS * trainer.args.steps_per_generation


@pytest.mark.parametrize("solved", [0, 1, 2])
def test_what_is_held_is_a_mean_over_the_batches_of_an_update(tmp_path: Path, solved: int) -> None:
    """Two batches of rollouts for one optimizer step, of which the last `solved` are solved and tell nothing."""
    calls: list[int] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        calls.append(len(completions))
        return [float(len(calls) > 2 - solved)] * len(completions)

    changes = {"steps_per_generation": 1, "gradient_accumulation_steps": 2, "beta": 0.001}
    trainer = trained(tmp_path, steps=1, reward=reward, options={"method": TARGETS}, **changes)
    assert len(calls) == 2
    if solved == 2:
        assert trainer.method.state_dict()["updates"] == 0
    else:
        assert logged(trainer, "aer/controlled") == pytest.approx([1.0], rel=1e-4)


@pytest.mark.parametrize("options", [{"entropy": ACTIVE}, {"method": TARGETS}])
def test_two_ranks_are_one(tmp_path: Path, options: dict[str, Any]) -> None:
    from tests.ranks import spawn

    one = trained(tmp_path, per_device_train_batch_size=ROWS, **on_ranks(options))
    (tmp_path / "ranks").mkdir()
    ranks = spawn(on_a_rank, 2, tmp_path / "ranks", str(tmp_path), options)
    for found, state, logs in ranks:
        torch.testing.assert_close(found, weights(one), rtol=0, atol=3e-5)
        assert state == ranks[0][1] and logs == pytest.approx(logged(one, "aer/coef"), rel=1e-4)
    assert logged(one, "aer/coef")[-1] > 0


def on_ranks(options: dict[str, Any]) -> dict[str, Any]:
    return {"reward": share_of_digits, "beta": 0.04, "options": options | {"rollout_func": fixed_rollouts()}}


def on_a_rank(folder: str, options: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any], list[float]]:
    trainer = trained(Path(folder) / "out", per_device_train_batch_size=ROWS // 2, **on_ranks(options))
    assert trainer.accelerator.num_processes == 2
    return weights(trainer), trainer.method.state_dict(), logged(trainer, "aer/coef")


def test_evaluation_changes_nothing(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"reward": share_of_digits, "options": {"entropy": ACTIVE, "rollout_func": fixed_rollouts()}}
    plain = trained(tmp_path, **changes)
    watched = trained(tmp_path, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=GROUP, **changes)
    assert len(logged(watched, "eval_reward")) == 3
    torch.testing.assert_close(weights(plain), weights(watched), rtol=0, atol=1e-5)  # evaluation moves the order in which TRL shuffles
    assert watched.method.state_dict()["updates"] == plain.method.state_dict()["updates"] == 3
    state, terms = watched.method.state_dict(), watched._aer_terms
    watched.evaluate()
    assert watched.method.state_dict() == state and watched._aer_terms is terms


@pytest.mark.parametrize("options", [{"entropy": ACTIVE}, {"entropy": EntropyControlConfig(target=9.0, tau_end=0.5)}, {"method": TARGETS}])
def test_resumed_is_uninterrupted(tmp_path: Path, options: dict[str, Any]) -> None:
    changes: dict[str, Any] = {"steps": 6, "options": options, "beta": 0.04}
    whole = trained(tmp_path / "whole", **changes)
    first = make(tmp_path / "half", **changes, save_strategy="steps", save_steps=3)
    first.train()
    shutil.rmtree(tmp_path / "half" / "checkpoint-6")
    second = make(tmp_path / "half", **changes)
    second.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-3"))
    assert torch.equal(weights(whole), weights(second))
    assert second.method.state_dict() == whole.method.state_dict() and whole.method.state_dict()["updates"] == 6
    (tmp_path / "half" / "checkpoint-3" / adapter.STATE).unlink()
    with pytest.raises(ValueError, match="resume_from_checkpoint must be a checkpoint of this method"):
        make(tmp_path / "half", **changes).train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-3"))


# what counts


def test_masked_tokens_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that a tool wrote: no bonus, not held, not in the method's batch."""
    masked = fixed_rollouts(env_mask=lambda response: [0] + [1] * (len(response) - 1))
    trainer = make(tmp_path, steps=1, reward=share_of_digits, options={"entropy": FIXED, "rollout_func": masked})
    _, by_entropy, mask, inputs = one_loss(trainer, monkeypatch)
    assert mask[:, 0].sum() == 0 < mask.sum() < inputs["completion_mask"].sum()
    torch.testing.assert_close(by_entropy, -FIXED.coef * mask / mask.sum())
    trainer = trained(tmp_path, steps=1, reward=share_of_digits, options={"method": CustomConfig(), "rollout_func": masked})
    batch, measured = trainer.method.seen
    assert measured.tokens == len(batch.logprobs) == mask.sum() and int(batch.position.min()) == 1


def test_truncated_responses_do_not_count(tmp_path: Path) -> None:
    """No response of the fixed rollouts ends: the coefficient of an empty batch stays, and no number is NaN."""
    options = {"entropy": ACTIVE, "rollout_func": fixed_rollouts()}
    trainer = trained(tmp_path, reward=share_of_digits, options=options, mask_truncated_completions=True)
    assert trainer.method.state_dict()["updates"] == 0 and logged(trainer, "aer/coef") == [0.0] * 3
    assert bool(weights(trainer).isfinite().all())


def test_the_quantile_masks_the_policy_term_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"entropy": FIXED, "rollout_func": fixed_rollouts()}
    trainer = make(tmp_path, steps=1, reward=share_of_digits, options=options, top_entropy_quantile=0.25)
    by_logprob, by_entropy, mask, _ = one_loss(trainer, monkeypatch)
    assert 0 < (by_logprob != 0).sum() < mask.sum() / 2
    torch.testing.assert_close(by_entropy, -FIXED.coef * mask / mask.sum())


@pytest.mark.parametrize("accuracy", ["correct", lambda rewards: rewards[:, 1]])
def test_accuracy_is_one_of_several_rewards(tmp_path: Path, accuracy: Any) -> None:
    options = {"method": CustomConfig(), "accuracy": accuracy}
    trainer = trained(tmp_path, steps=1, reward=[length, correct], options=options)
    batch, measured = trainer.method.seen
    assert batch.accuracy.mean() == pytest.approx(logged(trainer, "rewards/correct/mean")[0])
    assert measured.unsolved == pytest.approx(float((batch.accuracy == 0).float().mean()))


def test_what_cannot_be_scored_is_left_out(tmp_path: Path) -> None:
    """A response without a reward is not in the mean; a prompt without any is not in the batch, and gets no bonus."""

    def reward(prompts: list[str], **_: Any) -> list[float | None]:
        place = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        return [None if place[prompt] == 1 or (place[prompt] == 2 and i % GROUP == 0) else float(i % 2) for i, prompt in enumerate(prompts)]

    trainer = trained(tmp_path, steps=1, reward=reward, options={"method": CustomConfig(entropy=1.0)})
    batch, measured = trainer.method.seen
    assert batch.accuracy.tolist() == pytest.approx([0.5, 2 / 3, 0.5])
    inputs = trainer._buffered_inputs[0]
    left_out = inputs["aer_coef"].sum(1) == 0
    assert left_out.sum() == GROUP and measured.responses == ROWS - GROUP
    assert measured.tokens == len(batch.logprobs) == inputs["completion_mask"][~left_out].sum()


# options


def test_the_default_does_not_explore(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trained(tmp_path)
    assert trainer.method.controller.config == replace(BELOW_START, updates=3) and "BELOW_START" in caplog.text
    assert logged(trainer, "aer/coef") == [0.0] * 3
    assert logged(trainer, "aer/target") == pytest.approx([0.4 * trainer.method.controller.initial_entropy] * 3)
    assert torch.equal(weights(trainer), weights(trained(tmp_path, cls=GRPOTrainer)))


def test_a_schedule_is_told_how_many_updates_there_are(tmp_path: Path) -> None:
    trainer = trained(tmp_path, steps=4, options={"entropy": EntropyControlConfig(tau=1.2, tau_end=0.6, hold=0.0)}, **TWICE)
    assert trainer.method.controller.config.updates == 2
    assert logged(trainer, "aer/target")[-1] == pytest.approx(0.6 * trainer.method.controller.initial_entropy)


def test_lora_and_the_head_of_aer(tmp_path: Path) -> None:
    """Only the adapter moves, and both heads train the same."""
    found = {}
    for head in ("trl", "aer"):
        options = {"entropy": ACTIVE, "head": head, "peft_config": lora(init_lora_weights=True), "rollout_func": fixed_rollouts()}
        torch.manual_seed(0)
        trainer = trained(tmp_path, reward=share_of_digits, options=options, beta=0.04)
        found[head] = torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])
        assert logged(trainer, "aer/coef")[-1] > 0
    torch.testing.assert_close(found["trl"], found["aer"], rtol=0, atol=1e-5)


def test_the_example_of_a_method_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of docs/methods.md, given to the trainer as the page says."""
    codes = re.findall(r"```python\n(.*?)```", (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text(), re.DOTALL)
    (tmp_path / "my_module.py").write_text(next(code for code in codes if code.startswith("# my_module.py")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    base = make(tmp_path / "run")
    scope = {"model": model(), "accuracy_reward": correct, "args": base.args, "dataset": base.train_dataset}
    exec(next(code for code in codes if code.startswith("# in TRL\n")), scope)
    share, expected = 0.0, []
    for entropy in logged(scope["trainer"], "entropy"):
        share = max(0.0, share + (0.05 if entropy < 0.25 else -0.05))
        expected.append(share)
    assert len(expected) == 3 and scope["trainer"].method.status()["share"] == pytest.approx(expected[-1]) and expected[-1] > 0
    assert logged(scope["trainer"], "aer/controlled") == pytest.approx(logged(scope["trainer"], "entropy"), rel=1e-3)


def test_a_trainer_of_ones_own(tmp_path: Path) -> None:
    class Mine(GRPOTrainer):
        def _compute_loss(self, model, inputs):
            return 2.0 * super()._compute_loss(model, inputs)

    class Both(AERMixin, Mine):
        pass

    class Silent(AERMixin, GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            return GRPOTrainer._get_per_token_logps_and_entropies(self, *args, **kwargs)

    assert logged(trained(tmp_path, cls=Both, options={"entropy": ACTIVE}), "aer/coef")[-1] > 0
    with pytest.raises(ValueError, match="must stand before a trainer whose loss makes TRL's pass, got Silent"):
        trained(tmp_path, cls=Silent, options={"entropy": FIXED})


REFUSED = [
    ({"entropy": FIXED}, {"entropy_coef": 0.1}, "entropy_coef must be 0"),
    ({"entropy": FIXED}, {"use_adaptive_entropy": True}, "entropy_coef must be 0"),
    ({"entropy": FIXED, "method": ForkingTokensConfig()}, {}, "entropy must be None where method is given"),
    ({"entropy": FIXED}, {"reward": [length, correct]}, r"accuracy must name one of several reward functions \(length, correct\)"),
    ({"entropy": FIXED, "accuracy": "corect"}, {}, "accuracy must name one of the reward functions"),
    ({"entropy": FIXED, "head": "fused"}, {}, "head must be 'trl' or 'aer'"),
    ({"method": CustomConfig(kind="nothing")}, {}, "kind must be one of"),
    ({"method": method_class("kl_cov").Config()}, {}, "KLCov must have more than one update on each batch"),
    ({"method": method_class("siren").Config()}, {}, "method must need what this trainer has, got SIREN, which needs kept_entropy"),
    ({"method": CustomConfig(compares=True)}, {}, "beta must be above 0 for a method that compares with the first policy, got 0"),
    (
        {"method": CustomConfig(compares=True)},
        {"beta": 0.1, "sync_ref_model": True},
        "sync_ref_model must be False for a method that compares",
    ),
    ({"method": method_class("ares").Config()}, {}, "method must leave rewards to TRL's reward functions, got Ares"),
]


@pytest.mark.parametrize(("options", "changes", "message"), REFUSED)
def test_refused_at_the_start(tmp_path: Path, options: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, options=options, **changes)


REFUSED_LATER = [
    (
        {"entropy": FIXED},
        {"reward": length},
        r"accuracy must lie in \[0, 1\], got \d from reward function 'length': name another reward with accuracy=",
    ),
    ({"entropy": FIXED, "accuracy": lambda rewards: rewards[:, 0] - 1.0}, {}, r"accuracy must lie in \[0, 1\], got -1 from accuracy="),
    ({"entropy": FIXED, "accuracy": lambda rewards: rewards}, {}, r"accuracy must return shape \(16,\), got \(16, 1\)"),
    ({"method": CustomConfig(weight=0.5)}, {"importance_sampling_level": "sequence"}, "importance_sampling_level must be 'token'"),
    ({"method": CustomConfig(clip=0.1)}, {"loss_type": "cispo", "epsilon_high": 5.0, "num_iterations": 2}, "loss_type must be one of"),
    ({"method": CustomConfig(weight=-1.0)}, {}, "weight must be >= 0"),
]


@pytest.mark.parametrize(("options", "changes", "message"), REFUSED_LATER)
def test_refused_before_the_first_update(tmp_path: Path, options: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    trainer = make(tmp_path, options=options, **changes)
    before = weights(trainer)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert torch.equal(before, weights(trainer))


def test_nothing_stays_changed_after_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's loss fails inside the method's bounds and under the head of AER: both are as before."""

    def fails(self, *args, **kwargs):
        raise RuntimeError("of the user's own")

    monkeypatch.setattr(GRPOTrainer, "get_high_entropy_mask", fails)
    trainer = make(tmp_path, options={"method": CustomConfig(clip=0.1), "head": "aer"}, top_entropy_quantile=0.5, num_iterations=2)
    with pytest.raises(RuntimeError, match="of the user's own"):
        trainer.train()
    assert (trainer.epsilon_low, trainer.epsilon_high) == (0.2, 0.2)
    assert trl_utils._ChunkedLogProbFunction is ChunkedLogProbFunction


def test_types_and_other_trainers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="entropy must be an EntropyControlConfig, got ForkingTokensConfig"):
        make(tmp_path, options={"entropy": ForkingTokensConfig()})
    with pytest.raises(TypeError, match="method must be the configuration of a method, got str"):
        make(tmp_path, options={"method": "aer"})
    with pytest.raises(TypeError, match=r"accuracy must return a tensor of shape \(16,\), got list"):
        trained(tmp_path, options={"entropy": FIXED, "accuracy": lambda rewards: rewards[:, 0].tolist()})
    with pytest.raises(TypeError, match="AERMixin must stand before GRPOTrainer among the bases of a class, got Late"):
        type("Late", (GRPOTrainer, AERMixin), {})
    with pytest.raises(TypeError, match="AERMixin must stand before a GRPOTrainer, got RLOO, which is none"):
        make(tmp_path, cls=type("RLOO", (AERMixin, RLOOTrainer), {}), options={"entropy": FIXED})
    with pytest.raises(ValueError, match="got Unsloth's"):
        make(tmp_path, cls=type("UnslothGRPOTrainer", (AERGRPOTrainer,), {}), options={"entropy": FIXED})


def test_the_state_is_readable(tmp_path: Path) -> None:
    trained(tmp_path, options={"entropy": ACTIVE}, save_strategy="steps", save_steps=3)
    state = json.loads((tmp_path / "checkpoint-3" / adapter.STATE).read_text())
    assert state["kind"] == "aer" and state["updates"] == 3 and math.isfinite(state["coef"])
