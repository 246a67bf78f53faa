"""Methods that compare with the policy that a run of TRL's GRPOTrainer began with: which one it is, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the trl extra is not installed")

from aer_kernels.integrations.trl import AERGRPOTrainer
from aer_kernels.methods import TokenBatch
from tests.integrations.trl_setup import (
    TARGETS,
    CustomConfig,
    fixed_rollouts,
    logged,
    lora,
    make,
    model,
    nothing_is_left_patched,  # noqa: F401  a fixture
    share_of_digits,
    trained,
)

pytestmark = pytest.mark.slow


def adapted(*names: str, **options: Any) -> Any:
    """A model with adapters; the last one is trained."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    torch.manual_seed(1)  # TRL sets the seed of its options before it makes a copy
    found = peft.get_peft_model(model(), lora(init_lora_weights=False, **options))
    for name in names:
        found.add_adapter(name, lora(init_lora_weights=False))
        found.set_adapter(name)
    return found


def changed() -> Any:
    found = model()
    torch.nn.init.normal_(found.model.layers[0].mlp.up_proj.weight, std=0.3)
    return found


def with_bias(module: Any) -> Any:
    module.model.layers[0].self_attn.q_proj.bias = torch.nn.Parameter(torch.zeros(module.model.layers[0].self_attn.q_proj.out_features))
    return module


@pytest.mark.parametrize(
    ("kept", "beta", "head"),
    [("reference model", 0.04, "trl"), ("adapters off", 0.0, "aer"), ("adapters off", 0.04, "trl"), ("copy", 0.04, "trl")],
)
def test_the_first_policys_entropies(tmp_path: Path, kept: str, beta: float, head: str) -> None:
    """After two steps they are those of a policy that does not learn; that of an adapter is not its base model."""
    found = []
    for rate in (1e-2, 0.0):
        options = {"method": CustomConfig(needs_entropy=True, compares=True), "head": head, "rollout_func": fixed_rollouts()}
        start = adapted() if kept == "copy" else None
        torch.manual_seed(0)
        if kept == "adapters off":
            options["peft_config"] = lora()
        trainer = trained(tmp_path, reward=share_of_digits, start=start, options=options, beta=beta, learning_rate=rate, temperature=0.7)
        found.append([tokens for tokens in trainer.method.seen if isinstance(tokens, TokenBatch)][-1])
    torch.testing.assert_close(found[0].reference_entropy, found[1].entropy, rtol=1e-4, atol=1e-5)
    assert (found[0].entropy - found[0].reference_entropy).abs().max() > 1e-2


def test_the_first_policy_is_without_dropout(tmp_path: Path) -> None:
    """TRL's copy of an adapter has the adapter's dropout; the policy that learns keeps it."""
    found = []
    for dropout in (0.0, 0.5):
        options = {"method": CustomConfig(needs_entropy=True, compares=True), "rollout_func": fixed_rollouts()}
        start = adapted(lora_dropout=dropout)
        trainer = trained(tmp_path, reward=share_of_digits, start=start, options=options, beta=0.04, learning_rate=0.0)
        found.append([tokens for tokens in trainer.method.seen if isinstance(tokens, TokenBatch)][-1])
    torch.testing.assert_close(found[1].reference_entropy, found[0].reference_entropy)
    assert (found[1].entropy - found[0].entropy).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("start", "given", "beta", "message"),
    [
        (
            changed,
            None,
            0.04,
            r"model must be as '.*countdown_policy' holds it for a method that compares .* TRL loads that policy from there",
        ),
        (model, {"init_lora_weights": "pissa"}, 0.0, r"the adapter must be a LoRA that begins as nothing \(init_lora_weights=True\)"),
        (model, {"init_lora_weights": False}, 0.04, "the adapter must be a LoRA that begins as nothing"),
        (adapted, None, 0.0, "the adapter must be a LoRA that begins as nothing"),
        (lambda: with_bias(model()), {"bias": "all"}, 0.0, "model must train one adapter and nothing else .*q_proj.base_layer.bias beside"),
        (lambda: adapted(target_modules=["embed_tokens"]), None, 0.04, "got one whose copy lacks .*embed_tokens.lora_embedding_A"),
        (lambda: adapted("mine"), None, 0.04, "model must have an adapter that TRL copies whole .* got one whose copy lacks .*lora_A.mine"),
    ],
)
def test_another_first_policy_is_refused(tmp_path: Path, start: Any, given: Any, beta: float, message: str) -> None:
    """What TRL would compare with is not what the run begins with, or does not stay so."""
    options = {"method": CustomConfig(compares=True), "peft_config": lora(**given) if given else None}
    with pytest.raises(ValueError, match=message):
        make(tmp_path, start=start(), options=options, beta=beta)


def test_how_the_adapter_was_made_does_not_matter(tmp_path: Path) -> None:
    """An adapter that begins as nothing, given with the model or by the place of peft_config among the arguments."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed")

    class ByPlace(AERGRPOTrainer):
        def __init__(self, model, reward_funcs, args, train_dataset, eval_dataset, processing_class, method, peft_config):
            given = (model, reward_funcs, args, train_dataset, eval_dataset, processing_class, None, None, (None, None), None, peft_config)
            super().__init__(*given, method=method)

    options = {"method": CustomConfig(needs_entropy=True, compares=True)}
    by_place = make(tmp_path, cls=ByPlace, steps=1, options=options | {"peft_config": lora()})
    with_model = make(tmp_path, steps=1, start=peft.get_peft_model(model(), lora()), options=options)
    for trainer in (by_place, with_model):
        trainer.train()
        tokens = trainer.method.seen[0]
        torch.testing.assert_close(tokens.reference_entropy, tokens.entropy)


@pytest.mark.parametrize("kept", ["reference model", "adapters off", "copy"])
def test_resumed_runs_compare_with_the_same_policy(tmp_path: Path, kept: str) -> None:
    """Entropies of both policies are those of a run that was not cut; a run that began elsewhere is not gone on with."""

    def run(resumed: bool, start: Any = None) -> list[TokenBatch]:
        torch.manual_seed(0)
        options: dict[str, Any] = {"method": CustomConfig(needs_entropy=True, compares=True), "rollout_func": fixed_rollouts()}
        if kept == "adapters off":
            options["peft_config"] = lora()
        start = adapted() if kept == "copy" and start is None else start
        saved = {"save_strategy": "steps", "save_steps": 2, "beta": 0.04, "learning_rate": 1e-2}
        trainer = make(tmp_path, steps=4, reward=share_of_digits, start=start, options=options, **saved)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resumed else None)
        return [tokens for tokens in trainer.method.seen if isinstance(tokens, TokenBatch)]

    whole, second = run(False), run(True)
    for one, other in zip(whole[2:], second, strict=True):
        torch.testing.assert_close(one.entropy, other.entropy, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.reference_entropy, other.reference_entropy, rtol=1e-4, atol=1e-5)
    if kept != "copy":  # TRL's copy comes from the checkpoint
        moved = changed()
        moved.save_pretrained(tmp_path / "moved")
        with pytest.raises(ValueError, match=r"model must be the one that the run of .*checkpoint-2 began with, got another"):
            run(True, type(moved).from_pretrained(tmp_path / "moved", dtype=torch.float32))


def test_targets_for_each_token(tmp_path: Path) -> None:
    """The first policy is at 1 in its own units; a target above that asks for a bonus."""
    trainer = trained(tmp_path, options={"method": TARGETS}, beta=0.001)
    assert logged(trainer, "aer/controlled")[0] == pytest.approx(1.0, rel=1e-4) and logged(trainer, "aer/coef")[-1] > 0
