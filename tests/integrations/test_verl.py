"""AER and other methods inside verl, without Ray: options, batches, the loss beside verl's own, the trainer's functions."""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch

if importlib.util.find_spec("verl") is None:  # not importorskip: verl must find its CPU platform when it is imported
    pytest.skip("verl is not installed", allow_module_level=True)

from tests.integrations.verl_setup import actor_config, extra, jagged, queue_rows

# isort: split
import verl.trainer.ppo.v1
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.models.transformers import dense_common
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer, get_trainer_cls
from verl.utils import tensordict_utils as tu
from verl.utils.experimental import torch_functional
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from aer_kernels import BELOW_START, EXPLORE_THEN_SETTLE, EntropyControlConfig, entropy_slopes
from aer_kernels.integrations import guard, verl_loss, verl_options, verl_trainer, verl_version
from aer_kernels.integrations import verl as entry
from aer_kernels.integrations.verl_batch import arrange, queue_batch
from aer_kernels.integrations.verl_loss import COEF, DIVERGENCE, SCALARS, SLOPES, aer_ppo_loss
from aer_kernels.integrations.verl_options import LINEAR, MODES, prepare, read_options
from aer_kernels.integrations.verl_trainer import STATE, AERTrainerMixin, registered
from aer_kernels.methods import ForkingTokensConfig, PositiveAdvantageConfig, Stateless, TokenTerms, method_class

pytestmark = pytest.mark.verl

ROLLOUT = ["actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4"]


def hydra_composed(*overrides: str) -> Any:
    """verl's configuration with these overrides, as its main gets it."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", [*ROLLOUT, *overrides])


@cache
def plain_config() -> bytes:
    return pickle.dumps(hydra_composed())


def composed(*overrides: str) -> Any:
    """The same with overrides of values alone: a copy, for Hydra takes its time."""
    config = pickle.loads(plain_config())
    for override in overrides:
        read = OverridesParser.create().parse_override(override)
        OmegaConf.update(config, read.key_or_group, read.value(), force_add=read.is_add())
    return config


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
    from aer_kernels.integrations import verl_head  # puts itself in verl's place

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


# the batch

KEYS = ["b_0_0", "a_1_1", "a_0_0", "pad_0_0", "a_1_0", "b_1_0", "c_0_0", "a_10_0"]
TAGS = [{"is_padding": key.startswith("pad")} for key in KEYS]


def batch(**changes: Any) -> TensorDict:
    """Rows of KEYS: prompt a has three sessions of which the second is two rows, b two and c one."""
    data = queue_rows(3, len(KEYS))
    for name, value in changes.items():
        data[name] = value
    return data


def test_rows_are_sessions() -> None:
    rows = arrange(KEYS, TAGS)
    assert [KEYS[row] for row in rows.order] == ["a_0_0", "a_1_0", "a_1_1", "a_10_0", "b_0_0", "b_1_0", "c_0_0"]
    assert rows.response == [0, 1, 1, 2, 3, 4, 5] and rows.prompt == [0, 0, 0, 1, 1, 2]
    assert [KEYS[row] for row in rows.last] == ["a_0_0", "a_1_1", "a_10_0", "b_0_0", "b_1_0", "c_0_0"]
    with pytest.raises(ValueError, match="keys must have the form uid_session_index, got 'a_0'"):
        arrange(["a_0"], [{}])


def test_a_batch_has_the_loss_tokens() -> None:
    """By hand: every loss token of the real rows, sessions as responses, and numbers go back to where they were."""
    data = batch()
    found = queue_batch(data, KEYS, TAGS, "score", seed=5)
    tokens, rows = found.tokens, arrange(KEYS, TAGS)
    expected, place, before = [], {}, dict.fromkeys(rows.response, 0)
    for row, response in zip(rows.order, rows.response, strict=True):
        mask = data["response_mask"][row]
        for column in mask.nonzero().flatten().tolist():
            place[row, column] = len(expected)
            expected.append(
                (response, before[response] + column, *(float(data[n][row][column]) for n in ("old_log_probs", "advantages", "entropy")))
            )
        before[response] += len(mask)
    columns = (tokens.response, tokens.position, tokens.logprobs, tokens.advantages, tokens.entropy)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected and tokens.seed == 5
    score = [float(data["rm_scores"][row].sum()) for row in rows.last]
    assert (
        tokens.accuracy.tolist() == pytest.approx([sum(score[:3]) / 3, sum(score[3:5]) / 2, score[5]]) and tokens.rewards.tolist() == score
    )
    back = found.nested(torch.arange(len(expected)) + 1.0)
    for row in range(len(KEYS)):
        assert back[row].tolist() == [place.get((row, column), -1) + 1 for column in range(len(back[row]))]


def test_what_a_batch_shows() -> None:
    found = queue_batch(batch(), KEYS, TAGS, "score", 0)
    held = torch.linspace(0, 2, len(found.tokens.logprobs))
    measured = found.measured(held, (1.0, 2.0))
    assert measured.entropy == pytest.approx(float((held * found.tokens.entropy).sum())) and measured.tokens == pytest.approx(
        float(held.sum())
    )
    means = [float(held[found.tokens.response == response].mean()) for response in found.tokens.response.unique()]
    assert measured.responses == pytest.approx(sum(means)) and measured.slopes == (1.0, 2.0)
    data = batch()
    del data["entropy"]  # verl's bypass_mode makes no pass
    plain = queue_batch(data, KEYS, TAGS, "score", 0).measured(None, None)
    assert plain.entropy == pytest.approx(float(-found.tokens.logprobs.double().sum())) and plain.tokens == len(found.tokens.logprobs)


def test_accuracy_is_what_is_named() -> None:
    infos = [{"score": 0.5, "acc": bool(i % 2), "other": None if i in (0, 5) else 0.25} for i in range(len(KEYS))]
    data = batch(extra_fields=extra(infos), rm_scores=jagged([torch.tensor([0.0, 1.0 - 2.0 * (i % 2)]) for i in range(len(KEYS))]))
    last = arrange(KEYS, TAGS).last
    assert queue_batch(data, KEYS, TAGS, "acc", 0).tokens.rewards.tolist() == [float(row % 2) for row in last]
    assert queue_batch(data, KEYS, TAGS, "positive", 0).tokens.rewards.tolist() == [float(row % 2 == 0) for row in last]
    unscored = queue_batch(data, KEYS, TAGS, "other", 0).tokens  # nothing of b was scored
    assert unscored.accuracy.tolist() == [0.25, 0.25] and unscored.rewards is None
    assert set(unscored.response.tolist()) <= {0, 1, 2, 5} and unscored.prompt[5] == 1
    with pytest.raises(ValueError, match=r"accuracy must lie in \[0, 1\], got -1 from aer.correct=score: name positive, or a field"):
        queue_batch(data, KEYS, TAGS, "score", 0)
    with pytest.raises(ValueError, match=r"aer.correct must be one of score, positive, acc, other, got 'accuracy'"):
        queue_batch(data, KEYS, TAGS, "accuracy", 0)


# the loss


def outputs(data: TensorDict, seed: int = 1) -> dict[str, torch.Tensor]:
    """What a model could return for these rows: log-probs and entropies of all tokens, with gradients."""
    draw = torch.Generator().manual_seed(seed)
    offsets = data["input_ids"].offsets()
    flat = [(torch.randn(int(offsets[-1]), generator=draw) * 0.3 + shift).requires_grad_() for shift in (-1.0, 1.0)]
    return {name: torch.nested.nested_tensor_from_jagged(x, offsets) for name, x in zip(("log_probs", "entropy"), flat, strict=True)} | {
        "flat": flat
    }


def loss_of(function: Any, config: Any, data: TensorDict, dp_size: int = 1, **told: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
    """The loss, its gradients at the response's log-probs and entropies, (B, T), and its metrics."""
    data = data.clone()
    tu.assign_non_tensor(data, dp_size=dp_size, batch_num_tokens=50, global_batch_size=len(data), **({SCALARS: told} if told else {}))
    made = outputs(data)
    flat = made.pop("flat")
    loss, metrics = function(config, made, data)
    gradients = torch.autograd.grad(loss, flat, allow_unused=True)
    padded = [None if g is None else no_padding_2_padding(g, data) for g in gradients]
    return loss.detach(), *padded, metrics


def with_fields(**fields: float) -> TensorDict:
    """Rows with the same number for each loss token."""
    data = queue_rows()
    for name, value in fields.items():
        data[name] = jagged([value * mask.float() for mask in data["response_mask"].unbind()])
    return data


def test_without_fields_it_is_verls_loss_bit_for_bit() -> None:
    config = actor_config(use_kl_loss=False)
    theirs, ours = (loss_of(function, config, queue_rows()) for function in (ppo_loss, aer_ppo_loss))
    assert torch.equal(theirs[0], ours[0]) and torch.equal(theirs[1], ours[1]) and theirs[3].keys() == ours[3].keys()
    neutral = loss_of(aer_ppo_loss, config, with_fields(aer_coef=0.0, aer_divergence=0.0), entropy_scale=0.5)
    assert torch.equal(theirs[0], neutral[0]) and torch.equal(theirs[1], neutral[1])


@pytest.mark.parametrize("dp_size", [1, 2])
def test_a_constant_coefficient_is_verls_own(dp_size: int) -> None:
    """entropy_coeff with loss_agg_mode token-mean, and 2 x 0.02 of ours."""
    theirs = loss_of(ppo_loss, actor_config(entropy_coeff=0.04), queue_rows(), dp_size)
    ours = loss_of(aer_ppo_loss, actor_config(), with_fields(aer_coef=0.02), dp_size, entropy_scale=2.0)
    for one, other in zip(theirs[:3], ours[:3], strict=True):
        torch.testing.assert_close(one, other)
    assert ours[3]["actor/aer_bonus"].aggregate() == pytest.approx(0.04 * theirs[3]["actor/entropy_loss"].aggregate())


@pytest.mark.parametrize("mode", ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_every_aggregation(mode: str) -> None:
    """The bonus is a mean over tokens whatever the mode; the divergence is aggregated as verl's policy term."""
    data = with_fields(**{COEF: 0.5, DIVERGENCE: 2.0})
    config = actor_config(loss_agg_mode=mode)
    plain, ours = loss_of(ppo_loss, config, queue_rows()), loss_of(aer_ppo_loss, config, data, entropy_scale=0.1)
    mask = data["response_mask"].to_padded_tensor(0)
    torch.testing.assert_close(ours[2], -0.05 * mask / 50)
    count = mask.sum(1, keepdim=True)
    n = {"token-mean": mask / 50, "token-sum": mask * 1.0, "seq-mean-token-mean": mask / count.clamp(min=1) / len(mask)}.get(
        mode, mask / len(mask)
    )
    n = n / mask.shape[1] if mode.endswith("norm") else n
    made = outputs(data)
    distance = no_padding_2_padding(made["log_probs"], data) - data["old_log_probs"].to_padded_tensor(0)
    torch.testing.assert_close(ours[1] - plain[1], 2.0 * n * distance.sign(), rtol=1e-4, atol=1e-7)


OTHERS = ("dro", "geo_mean", "kl_cov")  # and clip_cov, which chooses its tokens by their advantages


@pytest.mark.parametrize("mode", [*LINEAR, *OTHERS])
def test_which_losses_carry_weights(mode: str) -> None:
    """A token's gradient is multiplied by what its advantage is multiplied by in LINEAR, and not in the others."""
    assert {*LINEAR, *OTHERS, "clip_cov"} == set(POLICY_LOSS_REGISTRY)
    data = queue_rows()
    weight = jagged([torch.linspace(0.25, 2.0, len(mask)) for mask in data["response_mask"].unbind()])
    weighted = data.clone()
    weighted["advantages"] = jagged([a * w for a, w in zip(data["advantages"].unbind(), weight.unbind(), strict=True)])
    config = actor_config(policy_loss=verl_policy_loss(mode))
    torch.manual_seed(0)
    plain = loss_of(ppo_loss, config, data)[1]
    torch.manual_seed(0)
    ours = loss_of(ppo_loss, config, weighted)[1]
    same = torch.allclose(ours, plain * weight.to_padded_tensor(0), rtol=1e-4, atol=1e-7)
    assert same == (mode in LINEAR)


def verl_policy_loss(mode: str) -> Any:
    from verl.workers.config import PolicyLossConfig

    return PolicyLossConfig(loss_mode=mode, dro_beta=0.1 if mode == "dro" else None, kl_cov_ratio=0.5)


def test_clip_bounds_are_told() -> None:
    data = queue_rows()
    theirs = loss_of(ppo_loss, actor_config(clip_ratio_low=0.05, clip_ratio_high=0.4, clip_ratio_c=1.2), data)
    config = actor_config()
    told = verl_loss.scalars(TokenTerms(clip_low=0.05, clip_high=0.4, dual_clip=1.2))
    ours = loss_of(aer_ppo_loss, config, data, **told)
    assert torch.equal(theirs[1], ours[1]) and not torch.equal(theirs[1], loss_of(ppo_loss, config, data)[1])
    assert (config.clip_ratio_low, config.clip_ratio_high, config.clip_ratio_c) == (0.2, 0.2, 3.0)


@pytest.mark.parametrize("dp_size", [1, 2])
def test_the_slopes_are_those_of_verls_loss(dp_size: int) -> None:
    """What kind balance is told. verl averages the metric over ranks, so that a rank's number is dp_size times its share."""
    data = with_fields(aer_coef=0.5)
    data["old_log_probs"] = jagged(response_rows(outputs(data)["log_probs"].detach(), data))  # the policy that sampled: ratios are 1
    metrics = loss_of(aer_ppo_loss, actor_config(), data, dp_size)[3]
    mask = data["response_mask"].to_padded_tensor(0)
    logprobs, entropy = (no_padding_2_padding(outputs(data)[name], data) for name in ("log_probs", "entropy"))
    expected = entropy_slopes(
        logprobs, entropy, advantages=data["advantages"].to_padded_tensor(0), weights=torch.tensor(0.5), loss_mask=mask
    )
    for name, value in zip(SLOPES, (expected.policy, expected.bonus), strict=True):
        assert metrics[name].aggregate() == pytest.approx(float(value) * dp_size, rel=1e-4), name


def response_rows(values: torch.Tensor, data: TensorDict) -> list[torch.Tensor]:
    padded = no_padding_2_padding(values, data)
    return [row[:count] for row, count in zip(padded, data["responses"].offsets().diff().tolist(), strict=True)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_head_is_exact(temperature: float) -> None:
    """Against float64; a token without a gradient has none."""
    before = torch_functional.FusedLinearForPPO
    from aer_kernels.integrations.verl_head import AERLinearForPPO

    torch_functional.FusedLinearForPPO = before
    hidden, weight, ids = torch.randn(2, 5, 16), torch.randn(40, 16), torch.randint(40, (2, 5))
    rows = (hidden.double() @ weight.double().T / temperature).log_softmax(-1)
    expected = rows.gather(-1, ids[..., None])[..., 0], -(rows.exp() * rows).sum(-1)
    hidden.requires_grad_()
    found = AERLinearForPPO(impl_backend="torch").forward(
        hidden_states=hidden, vocab_weights=weight, input_ids=ids.int(), temperature=temperature
    )
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-5)
    (found[0][0].sum() + found[1][0].sum()).backward()
    assert hidden.grad is not None and not hidden.grad[1].any() and hidden.grad[0].any()


# the trainer's functions


class Recorded(Stateless):
    """The same terms for every token; it keeps what it is told."""

    terms_given: ClassVar[dict[str, float]] = {}

    def __init__(self, config: Any) -> None:
        self.seen = list[Any]()

    def terms(self, tokens: Any) -> TokenTerms:
        self.seen.append(tokens)
        return TokenTerms(**{name: torch.full_like(tokens.advantages, value) for name, value in self.terms_given.items()}, clip_low=0.1)

    def update(self, measured: Any) -> None:
        self.seen.append(measured)


class Queue:
    """The two functions of the queue that the trainer calls."""

    def __init__(self) -> None:
        self.data = batch()

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        return self.data.select(*[name for name in select_fields if name in self.data])

    def kv_batch_put(self, keys: list[str], partition_id: str, fields: TensorDict) -> Any:
        self.data.update(fields)
        return Meta()


class Meta:
    keys, tags, partition_id = KEYS, TAGS, "train"

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}


class Parent:
    """What the mixin calls of verl's trainer."""

    def __init__(self, config: Any) -> None:
        self.config, self.global_steps, self.total_training_steps = config, 1, 6
        self.local_trigger_step, self.calls, self.resumed = 0, list[Any](), 0
        self.actor_rollout_wg = self

    def set_loss_fn(self, function: Any) -> None:
        self.calls.append(function)

    def _setup(self) -> None:
        self._load_checkpoint()

    def _compute_advantage(self, meta: Meta, metrics: dict[str, Any]) -> Meta:
        return meta

    def _update_actor(self, meta: Meta, metrics: dict[str, Any]) -> Meta:
        self.calls.append(dict(meta.extra_info))
        metrics.update({f"actor/{name}": 0.5 for name in SLOPES})
        return meta

    def _save_checkpoint(self) -> None:
        self.calls.append("saved")

    def _load_checkpoint(self) -> None:
        self.global_steps = self.resumed


class Trainer(AERTrainerMixin, Parent):
    pass


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    made = Queue()
    monkeypatch.setattr(verl_trainer, "tq", made)
    return made


def step(trainer: Trainer) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    trainer._update_actor(trainer._compute_advantage(Meta(), metrics), metrics)
    return metrics


def test_a_step_of_the_trainer(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and shifts in the advantages, coefficients in fields of their own, scalars for the workers; then the method learns."""
    monkeypatch.setitem(verl_options_methods(), "positive_advantage", Recorded)
    monkeypatch.setattr(Recorded, "Config", PositiveAdvantageConfig, raising=False)
    monkeypatch.setattr(Recorded, "terms_given", {"weight": 0.5, "shift": 0.25, "entropy_coef": 0.1, "divergence_coef": 0.2, "held": 2.0})
    trainer = Trainer(composed("+aer.method=positive_advantage"))
    before = queue.data["advantages"].values().clone()
    metrics = step(trainer)
    tokens, measured = trainer.method.seen  # type: ignore[attr-defined]
    found = queue_batch(batch(), KEYS, TAGS, "score", 0)
    moved = before.clone()
    moved[found.index] = 0.5 * (found.tokens.advantages + 0.25)
    expected = torch.zeros_like(before).index_fill_(0, found.index, 1.0)
    after = queue.data["advantages"].values()
    torch.testing.assert_close(after, moved * expected)
    torch.testing.assert_close(queue.data[COEF].values(), 0.1 * expected)
    torch.testing.assert_close(queue.data[DIVERGENCE].values(), 0.2 * expected)
    assert trainer.calls == [{SCALARS: {"entropy_scale": 1.0, "clip_ratio_low": 0.1}}]
    assert measured.tokens == 2 * len(tokens.logprobs) and measured.slopes == (0.5, 0.5)
    assert not any("slope" in name for name in metrics) and metrics["aer/unsolved_frac"] == measured.unsolved


def verl_options_methods() -> dict[str, Any]:
    from aer_kernels.methods import METHODS

    return METHODS


def test_off_and_warmup_leave_verl_alone(queue: Queue) -> None:
    """Neither the queue nor the workers see anything of ours."""
    before = set(queue.data.keys())
    for overrides in (["+aer.kind=off"], ["+aer.kind=fixed", "+aer.coef=0.1", "trainer.critic_warmup=5"]):
        trainer = Trainer(composed(*overrides))
        trainer._compute_advantage(Meta(), {})
        assert set(queue.data.keys()) == before
    trainer = Trainer(composed("+aer.kind=off"))
    trainer._setup()
    assert step(trainer) == {f"actor/{name}": 0.5 for name in SLOPES} and trainer.calls == [{}]
    trainer = Trainer(composed("+aer.kind=fixed"))
    trainer._setup()
    assert trainer.calls[0].func is aer_ppo_loss


def test_the_controller_is_resumed(queue: Queue, tmp_path: Path) -> None:
    """3 + 3 steps are 6: by its own checkpoints, and by a path; another's checkpoint is refused."""
    options = ["+aer.target=9.0", "+aer.tau_end=0.5", f"trainer.default_local_dir={tmp_path}"]
    whole, first = (Trainer(composed(*options)) for _ in range(2))
    for trainer, steps in ((whole, 6), (first, 3)):
        for number in range(steps):
            trainer.global_steps = number + 1
            coef = step(trainer)["aer/coef"]
    assert coef > 0
    first._save_checkpoint()
    assert json.loads((tmp_path / "global_step_3" / STATE).read_text()) == first.method.state_dict() and first.calls[-1] == "saved"
    for more in ([], ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/global_step_3"]):
        second = Trainer(composed(*options, *more))
        second.resumed = 3
        second._setup()
        for number in range(3, 6):
            second.global_steps = number + 1
            step(second)
        assert second.method.state_dict() == whole.method.state_dict()
    (tmp_path / "global_step_3" / STATE).unlink()
    with pytest.raises(ValueError, match=r"trainer.resume_mode must be disable, or the checkpoint one of this method"):
        second._load_checkpoint()


def test_seeds_repeat_after_a_resume(queue: Queue) -> None:
    """Another one for each batch, whoever counts them."""

    def seeds(first: int, last: int) -> list[int]:
        more = ["trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=2"]
        trainer = Trainer(composed("+aer.kind=fixed", "data.seed=7", *more))
        found = []
        for trainer.global_steps in range(first, last):
            for trainer.local_trigger_step in range(2):
                found.append(trainer._aer_seed())
        return found

    assert seeds(1, 5) == seeds(1, 3) + seeds(3, 5) and len(set(seeds(1, 5))) == 8


def test_a_schedule_is_told_how_many_updates_there_are() -> None:
    trainer = Trainer(composed("+aer.tau=0.5", "+aer.tau_end=0.4"))
    assert trainer.method.controller.config.updates == 6  # type: ignore[attr-defined]
    more = ["trainer.v1.trainer_mode=separate_async", "trainer.v1.separate_async.parameter_sync_step=4"]
    trainer = Trainer(composed("+aer.tau=0.5", "+aer.tau_end=0.4", *more))
    assert trainer.method.controller.config.updates == 24  # type: ignore[attr-defined]


def test_an_accuracy_outside_its_range_stops_before_the_update(queue: Queue) -> None:
    queue.data["rm_scores"] = jagged([-scores for scores in queue.data["rm_scores"].unbind()])
    trainer = Trainer(composed("+aer.kind=fixed"))
    with pytest.raises(ValueError, match=r"accuracy must lie in \[0, 1\], got -1 from aer.correct=score"):
        step(trainer)
    assert not trainer.calls and COEF not in queue.data


@pytest.mark.parametrize(
    "kind", ["aer", "balance", "bang_bang", "positive_advantage", "forking_tokens", "entropy_advantage", "kl_cov", "stare"]
)
def test_what_verls_loss_can_carry_is_taken(kind: str) -> None:
    """verl's default makes four updates on each batch."""
    assert isinstance(prepare(composed(f"+aer.method={kind}")).method, method_class(kind).Config)
