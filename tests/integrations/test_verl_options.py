"""What verl is accepted, which options are read and refused, and what is set among verl's own."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

if importlib.util.find_spec("verl") is None:  # not importorskip: verl must find its CPU platform when it is imported
    pytest.skip("verl is not installed", allow_module_level=True)

from tests.integrations.verl_setup import composed, hydra_composed

# isort: split
import verl.trainer.ppo.v1
from omegaconf import OmegaConf
from verl.models.transformers import dense_common
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer, get_trainer_cls
from verl.utils.experimental import torch_functional

from aer_kernels import BELOW_START, EXPLORE_THEN_SETTLE, EntropyControlConfig
from aer_kernels.integrations import guard, verl_options, verl_trainer, verl_version
from aer_kernels.integrations import verl as entry
from aer_kernels.integrations.verl_options import HEAD, MODES, prepare, read_options
from aer_kernels.integrations.verl_trainer import AERTrainerMixin, registered
from aer_kernels.methods import ForkingTokensConfig, PositiveAdvantageConfig

pytestmark = pytest.mark.verl

# versions and signatures


def test_versions() -> None:
    for version in ("0.8.3", "0.10.0", "1.0"):
        with pytest.raises(ImportError, match=rf"verl must be at least 0.9 and below 0.10, got {version}: pip install"):
            guard.check_version("verl", version, verl_version.OLDEST, verl_version.BELOW, "pip install 'verl>=0.9,<0.10'")
    for version in ("0.9.0", "0.9.7"):
        guard.check_version("verl", version, verl_version.OLDEST, verl_version.BELOW, "pip install it")


def imported_again(module: ModuleType) -> None:
    spec = importlib.util.spec_from_file_location("again", module.__file__)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("module", [entry, verl_trainer])
def test_both_doors_refuse_another_version(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    monkeypatch.setattr(verl, "__version__", "0.10.0")
    monkeypatch.delitem(sys.modules, verl_version.__name__)
    with pytest.raises(ImportError, match=r"verl must be at least 0.9 and below 0.10, got 0.10.0: pip install 'verl>=0.9,<0.10'"):
        imported_again(module)


@pytest.mark.parametrize("name", list(verl_trainer.OVERRIDDEN))
def test_a_changed_trainer_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def changed(self: Any, other: Any) -> None: ...

    monkeypatch.setattr(PPOTrainer, name, changed)
    with pytest.raises(ImportError, match=r"AERTrainerMixin must be used with a tested version: .*changed takes \(other\) in verl"):
        imported_again(verl_trainer)


def test_a_changed_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(torch.nn.Module):
        def forward(self, hidden: Any, weight: Any) -> None: ...

    before = torch_functional.FusedLinearForPPO
    monkeypatch.delitem(sys.modules, HEAD, raising=False)  # whichever test was first
    verl_head = importlib.import_module(HEAD)  # puts itself in verl's place
    assert torch_functional.FusedLinearForPPO is verl_head.AERLinearForPPO
    try:
        torch_functional.FusedLinearForPPO = Other
        with pytest.raises(ImportError, match=r"aer.head=true must be used with a tested version"):
            verl_head.use_aer_head()
        torch_functional.FusedLinearForPPO = before
        monkeypatch.setattr(dense_common, "forward_with_torch_backend", lambda self: self)
        with pytest.raises(ImportError, match="models do not look up FusedLinearForPPO"):
            verl_head.use_aer_head()
        assert torch_functional.FusedLinearForPPO is before
    finally:
        torch_functional.FusedLinearForPPO = before


# options


def test_options() -> None:
    assert read_options({}) == verl_options.Options(BELOW_START, "score", False)
    given = {"quantity": "response", "tau": 1.2, "tau_end": 0.6, "hold": 0.4, "difficulty": "uniform", "surplus": 1.0, "head": True}
    assert read_options(given) == verl_options.Options(EXPLORE_THEN_SETTLE, "score", True)
    assert not read_options({"kind": "off"}).on and read_options({"correct": "acc"}).method == BELOW_START
    assert read_options({"method": "forking_tokens", "share": 0.3}).method == ForkingTokensConfig(share=0.3)
    both = read_options({"method": "aer+positive_advantage", "aer": {"tau": 0.5}, "positive_advantage": {"target": 0.3}}).method
    assert both.aer == EntropyControlConfig(tau=0.5) and both.positive_advantage == PositiveAdvantageConfig(target=0.3)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"tua": 1.0}, ValueError, "aer.tua must be one of the options kind, .*tau"),
        ({"method": "aer+positive_advantage", "aer": {"tua": 1.0}}, ValueError, "aer.aer.tua must be one of"),
        ({"method": "nothing"}, ValueError, "kind must be one of"),
        ({"tau": -1.0}, ValueError, "tau must be > 0"),
        ({"kind": "aer", "method": "aer"}, ValueError, "aer.kind must be left out"),
        ({"head": "yes"}, TypeError, "aer.head must be true or false"),
        ({"correct": 1}, TypeError, "aer.correct must be a string"),
    ],
)
def test_refused_options(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_options(given)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["actor_rollout_ref.actor.entropy_coeff=0.01"], "entropy_coeff must be 0 with aer"),
        (["trainer.use_v1=False"], "trainer_mode must be one of .*got the legacy trainer"),
        (["trainer.v1.trainer_mode=other"], "trainer_mode must be one of sync, colocate_async, separate_async .*got other"),
        (["distillation.enabled=True"], "distillation.enabled must be False"),
        (["+aer.head=true", "actor_rollout_ref.actor.strategy=megatron"], "aer.head must be false unless .*got megatron"),
        (["+aer.head=true", "actor_rollout_ref.model.fused_kernel_options.impl_backend=triton"], "impl_backend must be torch"),
        (["+aer.method=ares"], "aer.method must leave rewards to verl"),
        (["+aer.method=siren"], "method must need what this trainer has, got SIREN"),
        (["+aer.method=kl_cov", "data.train_batch_size=256"], "KLCov must have more than one update on each batch"),
        (["+aer.method=forking_tokens", "algorithm.rollout_correction.bypass_mode=True"], "bypass_mode must be False with aer.method"),
        (["+aer.method=forking_tokens", "actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean"], "loss_mode must be one of vanilla"),
        (["+aer.method=mai_clip", "actor_rollout_ref.actor.policy_loss.loss_mode=cispo"], "loss_mode must be one of vanilla for"),
    ],
)
def test_refused_beside_verls_options(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(composed(*overrides))


def test_what_is_set_among_verls_options() -> None:
    """Twice is once; nothing of verl's is touched where the method is off."""
    given = ["+aer.head=true", "+aer.tau=0.5", "actor_rollout_ref.model.external_lib=json"]
    config = hydra_composed(*given)
    assert config == composed(*given)
    assert prepare(config) == prepare(config)
    model, actor = config.actor_rollout_ref.model, config.actor_rollout_ref.actor
    assert list(model.external_lib) == [verl_options.HEAD, "json"] and model.use_fused_kernels and actor.calculate_entropy
    plain = composed()
    changed = hydra_composed("+aer.kind=off", "actor_rollout_ref.actor.entropy_coeff=0")
    prepare(changed)
    found = OmegaConf.to_container(changed, resolve=False)
    assert found.pop("aer") == {"kind": "off"} and found == OmegaConf.to_container(plain, resolve=False)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_by_its_registry(mode: str) -> None:
    """The mixin stands before the mode's own trainer, and the registry is as before after an exception."""
    theirs = get_trainer_cls(mode)
    with pytest.raises(RuntimeError, match="of the user's own"), registered(mode):
        ours = get_trainer_cls(mode)
        assert ours.__mro__[1:3] == (AERTrainerMixin, theirs) and not getattr(ours, "__abstractmethods__", None)
        raise RuntimeError("of the user's own")
    assert TRAINER_REGISTRY[mode] is theirs and set(TRAINER_REGISTRY) == set(MODES)
    assert verl.trainer.ppo.v1.get_trainer_cls(mode) is theirs


def test_a_mixin_behind_the_trainer_is_refused() -> None:
    with pytest.raises(TypeError, match="AERTrainerMixin must stand before verl's trainer among the bases of a class, got Late"):
        type("Late", (get_trainer_cls("sync"), AERTrainerMixin), {})
