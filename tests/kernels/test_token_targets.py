"""Targets for each token: what is held, how the coefficient moves, what is refused. Its loss is in test_method_losses.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aer_kernels import entropy_slopes
from aer_kernels.methods import Measured, TokenTargetsConfig
from tests.kernels.token_batches import batch, full, make


def targets(**options):
    """Its parts are tested one by one: those that are not named are off."""
    return make("token_targets", **({"rho": 1.0, "ahead": 0.0, "forward": 0.0, "min_coef": 0.0} | options))


def held_entropy(tokens, terms):
    """What a trainer reports as `Measured.entropy`."""
    return float((terms.held.double() * tokens.entropy.double()).sum())


def test_what_is_held_is_the_unsolved_prompts_entropy_in_units_of_its_start():
    """Accuracies .25 and .75 count 3/4 and 1/4; with rho .5 half and nothing."""
    tokens = replace(full(), accuracy=torch.tensor([0.25, 0.75]))
    entropy, start, first = tokens.entropy.double(), tokens.reference_entropy.double(), tokens.prompt_of_token == 0
    v = torch.where(first, 0.75, 0.25).double()
    assert held_entropy(tokens, targets().terms(tokens)) == pytest.approx(float((v * entropy).sum() / (v * start).sum()), rel=1e-6)
    assert held_entropy(tokens, targets(rho=0.5).terms(tokens)) == pytest.approx(float(entropy[first].sum() / start[first].sum()), rel=1e-6)
    same = replace(tokens, reference_entropy=tokens.entropy)
    assert held_entropy(same, targets(floor=9.0).terms(same)) == pytest.approx(1.0, rel=1e-6), "the first update of a run"


def test_what_is_solved_tells_nothing_and_still_gets_the_bonus():
    method = targets(tau=1.2)
    method.update(Measured(1.0, 5.0, 2.0))
    tokens = replace(full(), accuracy=torch.ones(2))
    terms, before = method.terms(tokens), method.state_dict()
    assert not terms.held.any() and terms.entropy_coef.max() > 0
    method.update(Measured(0.0, 0.0, 0.0))
    assert method.state_dict() == before


def test_the_coefficient_by_hand():
    """Relative errors .2, -.2, -.2 without smoothing; the integral falls twice as fast as it rises, and not below 0."""
    method = targets(tau=1.0, kp=0.5, ki=0.1, fall=2.0, ema=0.0)
    found = []
    for entropy in (0.8, 1.2, 1.2):
        method.update(Measured(entropy, 1.0, 1.0))
        found += [method.regulator.state_dict()["rule"]["integral"], method.status()["coef"]]
    assert found == pytest.approx([0.02, 0.12, 0.0, 0.0, 0.0, 0.0])
    method.update(Measured(0.5, 1.0, 1.0))
    assert method.status()["coef"] == pytest.approx(0.3)
    assert method.status()["target"] == 1.0 and method.status()["controlled"] == 0.5 and method.status()["initial"] == 0.8


def test_looking_ahead_by_hand():
    """Trends 0, .02, .036 of changes 0, .1, .1; three updates ahead of entropies .8, .9, 1 that is .8, .96, 1.108."""
    method = targets(tau=1.0, kp=0.5, ki=0.1, fall=2.0, ema=0.0, ahead=3.0)
    found = []
    for entropy in (0.8, 0.9, 1.0):
        method.update(Measured(entropy, 1.0, 1.0))
        found += [method.regulator.state_dict()["rule"]["integral"], method.status()["coef"]]
    assert found == pytest.approx([0.02, 0.12, 0.024, 0.044, 0.024 - 0.0216, 0.0], abs=1e-9)
    assert method.status()["smoothed"] == 1.0, "what is reported is what was measured"


def test_a_target_that_moves():
    method = targets(tau=1.2, tau_end=0.6, hold=0.5, updates=4)
    found = []
    for _ in range(4):
        method.update(Measured(1.0, 1.0, 1.0))
        found.append(method.status()["target"])
    assert found == pytest.approx([1.2, 1.2, 0.9, 0.6])


def test_below_0_by_hand():
    """Relative errors -.2, -.2, .2: the integral goes down to min_coef, twice as fast as it comes back."""
    method = targets(tau=1.0, kp=0.5, ki=0.1, fall=2.0, ema=0.0, min_coef=-0.06)
    found = []
    for entropy in (1.2, 1.2, 0.8):
        method.update(Measured(entropy, 1.0, 1.0))
        found += [method.regulator.state_dict()["rule"]["integral"], method.status()["coef"]]
    assert found == pytest.approx([-0.04, -0.06, -0.06, -0.06, -0.04, 0.06])


def test_a_coefficient_below_0_lowers_tokens_above_their_own_target():
    """Targets 1 and 2 nats: nothing up to the target, half a tenth above, all from a fifth above on."""
    method = targets(tau=1.0, kp=0.5, ki=0.0, min_coef=-0.2)
    method.update(Measured(1.4, 1.0, 1.0))
    entropy, start = torch.tensor([0.9, 1.0, 1.1, 9.0, 2.2, 2.4]), torch.tensor([1.0, 1, 1, 1, 2, 2])
    tokens = replace(full(((6,),)), entropy=entropy, reference_entropy=start)
    assert method.terms(tokens).entropy_coef.tolist() == pytest.approx([0.0, 0.0, -0.1, -0.2, -0.1, -0.2], abs=1e-6)


def test_a_token_above_its_own_target_gets_less_bonus():
    method = targets(tau=1.0, kp=0.5, ki=0.0)
    method.update(Measured(0.8, 1.0, 1.0))
    entropy, start = torch.tensor([1.0, 1.5, 9.0, 2.0, 3.0, 0.1]), torch.tensor([1.0, 1, 1, 2, 2, 2])
    tokens = replace(full(((6,),)), entropy=entropy, reference_entropy=start)
    assert method.terms(tokens).entropy_coef.tolist() == pytest.approx([0.1, 0.05, 0.0, 0.1, 0.05, 0.1])


def test_forward_adds_a_share_of_the_balance():
    """The balance is that of the slopes with each token's room as its weight; a policy gradient that raises entropy adds nothing."""
    tokens = full(((40, 40), (40, 40)), seed=3)
    tokens = replace(tokens, reference_entropy=tokens.entropy)
    for sign in (1.0, -1.0):
        mine = replace(tokens, advantages=sign * tokens.advantages)
        mask = torch.ones(len(mine.logprobs), dtype=torch.bool)
        slopes = entropy_slopes(mine.logprobs, mine.entropy, advantages=mine.advantages, weights=mask.float(), loss_mask=mask)
        balance = max(0.0, -float(slopes.policy / slopes.bonus))
        found = targets(tau=1.0, forward=0.5, max_coef=99.0, floor=1e-9).terms(mine).entropy_coef
        assert found.tolist() == pytest.approx([0.5 * balance] * 160, rel=1e-5) and (balance > 0) == (slopes.policy < 0)
        assert targets(tau=1.0, forward=0.5, max_coef=0.01).terms(mine).entropy_coef.max() <= 0.01
    assert targets(forward=0.5).needs_logprobs and not targets().needs_logprobs


def test_forward_ends_above_the_target():
    """Whole at the target, half of it a tenth above, nothing from a fifth above on."""
    tokens = full(((40, 40), (40, 40)), seed=3)
    tokens = replace(tokens, reference_entropy=tokens.entropy)
    method = targets(tau=1.0, forward=0.5, kp=0.0, ki=0.0, max_coef=99.0, floor=1e-9, ema=0.0)
    tokens = tokens if method.terms(tokens).entropy_coef.any() else replace(tokens, advantages=-tokens.advantages)
    whole = method.terms(tokens).entropy_coef
    assert whole.min() > 0
    for entropy, share in ((0.5, 1.0), (1.0, 1.0), (1.1, 0.5), (1.3, 0.0)):
        method.update(Measured(entropy, 1.0, 1.0))
        torch.testing.assert_close(method.terms(tokens).entropy_coef, share * whole)


def test_forward_ends_while_the_target_falls():
    """Targets 1.2, 1.2, .9, .6: whole, whole, half of it, nothing."""
    tokens = full(((40, 40), (40, 40)), seed=3)
    tokens = replace(tokens, reference_entropy=tokens.entropy)
    options = dict(tau=1.2, forward=0.5, kp=0.0, ki=0.0, max_coef=99.0, floor=1e-9, surplus=9e9, ema=0.0)
    if not targets(**options).terms(tokens).entropy_coef.any():
        tokens = replace(tokens, advantages=-tokens.advantages)
    still, moving = targets(**options), targets(**options, tau_end=0.6, hold=0.5, updates=4)
    whole = still.terms(tokens).entropy_coef
    assert whole.min() > 0
    for share in (1.0, 1.0, 0.5, 0.0):
        moving.update(Measured(0.5, 1.0, 1.0))
        torch.testing.assert_close(moving.terms(tokens).entropy_coef, share * whole, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("tau_end", "share"), [(None, 1.0), (1.2, 1.0), (2.4, 1.0), (0.6, 0.0)])
def test_forward_ends_only_where_the_target_falls(tau_end, share):
    """A target that rises, or that has tau_end where it is, needs it to the end."""
    tokens = full(((40, 40), (40, 40)), seed=3)
    tokens = replace(tokens, reference_entropy=tokens.entropy)
    options = dict(tau=1.2, forward=0.5, kp=0.0, ki=0.0, max_coef=99.0, floor=1e-9, surplus=9e9, ema=0.0)
    if not targets(**options).terms(tokens).entropy_coef.any():
        tokens = replace(tokens, advantages=-tokens.advantages)
    method = targets(**options, tau_end=tau_end, hold=0.5, updates=4)
    whole = method.terms(tokens).entropy_coef
    for _ in range(5):
        method.update(Measured(0.5, 1.0, 1.0))
    assert method.status()["target"] == pytest.approx(tau_end or 1.2) and whole.min() > 0
    torch.testing.assert_close(method.terms(tokens).entropy_coef, share * whole, rtol=1e-5, atol=1e-9)


def test_forward_is_added_to_a_coefficient_that_is_within_its_bounds():
    """Far above nothing is fed forward; a little above kp e + I is at min_coef, and half of the balance is added to that."""
    tokens = full(((40, 40), (40, 40)), seed=3)
    tokens = replace(tokens, reference_entropy=tokens.entropy)
    options = dict(tau=1.0, kp=99.0, ki=0.0, min_coef=-0.02, max_coef=99.0, floor=1e-9, surplus=9e9, ema=0.0)
    if not targets(**options, forward=1.0).terms(tokens).entropy_coef.any():
        tokens = replace(tokens, advantages=-tokens.advantages)
    balance = float(targets(**options, forward=1.0).terms(tokens).entropy_coef[0])
    method = targets(**options, forward=0.1 / balance)
    for entropy, coef in ((1.1, -0.02 + 0.05), (1.3, 0.0)):  # at 1.3 it is -.02, and no token is above its own target
        method.update(Measured(entropy, 1.0, 1.0))
        torch.testing.assert_close(method.terms(tokens).entropy_coef, torch.full((160,), coef), rtol=1e-4, atol=1e-7)


def test_what_it_needs_is_asked_for_by_name():
    with pytest.raises(ValueError, match="reference_entropy must be given in the TokenBatch for this method, got None"):
        targets().terms(batch())
    with pytest.raises(ValueError, match=r"reference_entropy must have shape \(10,\) like logprobs, got \(3,\)"):
        replace(full(), reference_entropy=torch.ones(3))


@pytest.mark.parametrize(
    "options, match",
    [
        ({"target": 2.0}, r"target must be None \(tau says how much of the initial policy's entropy is held\), got 2.0"),
        ({"rho": 0.0}, r"rho must be in \(0, 1\], got 0.0"),
        ({"floor": 0.0}, "floor must be > 0, got 0.0"),
        ({"fall": 0.0}, "fall must be > 0, got 0.0"),
        ({"surplus": -1.0}, "surplus must be > 0, got -1.0"),
        ({"min_coef": 0.1}, "min_coef must be <= 0, got 0.1"),
        ({"min_coef": float("nan")}, "min_coef must be <= 0, got nan"),
        ({"ahead": -0.1}, "ahead must be >= 0, got -0.1"),
        ({"tau": 0.0}, "tau must be > 0, got 0.0"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        TokenTargetsConfig(**options)
