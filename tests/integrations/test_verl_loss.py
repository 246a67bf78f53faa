"""The loss beside verl's own, and the head, without Ray."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

if importlib.util.find_spec("verl") is None:  # not importorskip: verl must find its CPU platform when it is imported
    pytest.skip("verl is not installed", allow_module_level=True)

from tests.integrations.verl_setup import actor_config, jagged, queue_rows

# isort: split
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.utils import tensordict_utils as tu
from verl.utils.experimental import torch_functional
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from aer_kernels import entropy_slopes
from aer_kernels.integrations import verl_loss
from aer_kernels.integrations.verl_loss import COEF, DIVERGENCE, SCALARS, SLOPES, aer_ppo_loss
from aer_kernels.integrations.verl_options import LINEAR
from aer_kernels.methods import TokenTerms

pytestmark = pytest.mark.verl


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
