"""Entropy control: hand-computed steps of every rule, and the rules that must never be broken."""

import json
from typing import get_args

import pytest
import torch

from aer_kernels import AdaptiveEntropyController, EntropyControlConfig
from aer_kernels.entropy_control.config import Kind
from aer_kernels.entropy_control.weights import difficulty_weights


def controller(**options) -> AdaptiveEntropyController:
    return AdaptiveEntropyController(EntropyControlConfig(**options))


def feed(ctl, entropies, tokens=100, slopes=(-0.02, 0.1)):
    """Updates with these entropies; slopes are per token: their balance is a coefficient of 0.2."""
    return [ctl.update(h * tokens, tokens, [slope * tokens for slope in slopes]) for h in entropies]


def test_aer_by_hand():
    """H0 = 1, tau 0.8: target 0.8; then H = 0.5: Hbar 0.75, e = 0.0625; I = 0.05 e on top of the clipped start."""
    ctl = controller(tau=0.8, kp=0.5, ki=0.05, ema=0.5, max_coef=0.6)
    assert ctl.alpha == 0.0 and ctl.target is None
    assert ctl.update(100.0, 100) == 0.0  # e = (0.8 - 1) / 0.8 < 0: nothing to add, and no negative integral
    assert ctl.target == pytest.approx(0.8) and ctl.initial_entropy == 1.0
    assert ctl.update(50.0, 100) == pytest.approx(0.5 * 0.0625 + 0.05 * 0.0625)
    assert ctl.smoothed_entropy == pytest.approx(0.75)


def test_balance_by_hand():
    """The same errors in units of the balance coefficient: first slopes -0.02 and 0.1, then -0.04 and 0.1, whose means balance at 0.3."""
    ctl = controller(kind="balance", tau=0.8, kp=5.0, ki=0.4, ema=0.5)
    assert ctl.alpha == 0.0
    assert feed(ctl, [1.0]) == [0.0] and ctl.balance == pytest.approx(0.2)
    assert feed(ctl, [0.5], slopes=(-0.04, 0.1)) == pytest.approx([0.3 * (5.0 + 0.4) * 0.0625])
    assert ctl.balance == pytest.approx(0.3)


def test_balance_is_free_of_scale():
    """Advantages a hundred times smaller need a coefficient a hundred times smaller, at every step."""
    path = [1.0, 0.8, 0.6, 0.5, 0.7, 0.9, 1.1, 0.6]
    large, small = (feed(controller(kind="balance", tau=0.8), path, slopes=(-0.02 * scale, 0.1)) for scale in (1.0, 0.01))
    assert max(large) > 0.1
    assert small == pytest.approx([alpha * 0.01 for alpha in large])


def test_balance_takes_what_lowers_entropy_and_never_vanishes():
    ctl = controller(kind="balance")
    feed(ctl, [1.0, 1.0], slopes=(0.3, 0.1))  # a policy gradient that raises entropy needs no balance
    assert ctl.balance == 1e-4
    feed(ctl, [1.0, 1.0], slopes=(-0.02, 0.1))
    assert ctl.balance == pytest.approx(0.1), "half of the steps at 0.2"
    assert controller(kind="balance").balance == 1e-4
    feed(ctl, [1.0] * 200, slopes=(-0.04, 0.0))
    assert ctl.balance > 1.0, "a bonus that hardly moves the entropy must be large; max_coef bounds it"
    assert max(feed(ctl, [0.1] * 50, slopes=(-0.04, 0.0))) == ctl.config.max_coef


def test_balance_needs_slopes():
    with pytest.raises(ValueError, match=r"slopes must be given for kind='balance'"):
        controller(kind="balance").update(1.0, 1)
    with pytest.raises(ValueError, match=r"slopes must be finite, got nan and 1\.0"):
        controller(kind="balance").update(1.0, 1, (float("nan"), 1.0))


@pytest.mark.parametrize("kind, bound", [("aer", 0.2), ("balance", 5.0)])
def test_no_windup(kind, bound):
    """Entropy stuck at 0 for 500 steps: the output saturates, the integral is frozen, and the coefficient falls as soon as entropy returns."""
    ctl = controller(kind=kind, target=1.0)
    feed(ctl, [0.0] * 500)
    assert ctl.alpha == 0.6 and ctl.saturated
    assert ctl.state_dict()["rule"]["integral"] < bound  # aer: frozen where kp * e + I first reached the cap: 0.6 - 0.5
    feed(ctl, [1.4] * 4)
    assert ctl.alpha == 0.0


@pytest.mark.parametrize("kind", ["aer", "balance"])
def test_brakes_from_above_without_going_negative(kind):
    ctl = controller(kind=kind, target=1.0)
    feed(ctl, [0.7] * 20)
    assert ctl.alpha > 0
    assert feed(ctl, [3.0] * 10)[-1] == 0.0
    assert ctl.state_dict()["rule"]["integral"] >= 0.0


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("rate", [0.3, 1.2])
def test_balance_holds_a_simulated_policy_at_every_scale(scale, rate):
    """dH = rate * (policy slope + alpha * bonus slope), both proportional to H; the force acts through a momentum of 10 steps, as Adam's does.

    Without a bonus H falls to a tenth; with it the last 300 of 400 steps stay within 15 % of the target, for advantages over two orders of
    magnitude and speeds a factor 4 apart (the step size does not shrink with the advantages: Adam normalises it)."""

    def simulate(ctl):
        entropy, momentum, path = 1.0, 0.0, []
        for _ in range(400):
            slopes = (-0.02 * scale * entropy, 0.1 * entropy)
            momentum = 0.9 * momentum + 0.1 * (slopes[0] + ctl.alpha * slopes[1]) / scale
            ctl.update(entropy * 64, 64, [slope * 64 for slope in slopes])
            entropy = max(1e-3, entropy + rate * momentum)
            path.append(entropy)
        return path

    assert simulate(controller(kind="off"))[-1] < 0.1
    held = simulate(controller(kind="balance", tau=0.7))[100:]
    assert min(held) > 0.595 and max(held) < 0.805


def test_aer_holds_where_its_gains_fit():
    """dH = 0.2 (alpha - 0.1) H: without a bonus H falls to a fifth; with it the last 200 of 400 steps stay within 10 % of the target."""

    def simulate(ctl):
        entropy, path = 1.0, []
        for _ in range(400):
            ctl.update(entropy * 64, 64)
            entropy = max(1e-3, entropy + 0.2 * ctl.alpha * entropy - 0.02 * entropy)
            path.append(entropy)
        return path[200:]

    assert max(simulate(controller(kind="off"))) < 0.2
    held = simulate(controller(tau=0.7))
    assert min(held) > 0.63 and max(held) < 0.77


def test_target_settles():
    """tau 0.8 for half of 10 updates, then down to 0.4 in a straight line; more updates than announced stay there."""
    ctl = controller(tau=0.8, tau_end=0.4, hold=0.5, updates=10)
    targets = []
    for _ in range(12):
        feed(ctl, [1.0])
        targets.append(ctl.target)
    assert targets == pytest.approx([0.8] * 5 + [0.72, 0.64, 0.56, 0.48, 0.4, 0.4, 0.4])
    absolute = controller(tau=0.8, tau_end=0.4, hold=0.0, updates=2, target=2.0)
    feed(absolute, [1.0])
    assert absolute.target == pytest.approx(1.5), "half of the way from 2 to 1"
    with pytest.raises(ValueError, match="updates must be given with tau_end, got None"):
        controller(tau_end=0.4)


SOLVES = {"tau": 0.8, "tau_end": 0.4, "hold": 0.75, "updates": 40, "settle_unsolved": 0.75}


def targets(shares: list[float], ctl: AdaptiveEntropyController) -> list[float]:
    """Feed an entropy of 1 and these shares of unsolved prompts; return the target after each update."""
    found = []
    for share in shares:
        ctl.update(1.0, 1, unsolved=share)
        found.append(ctl.target)
    return found


def test_target_settles_when_prompts_begin_to_be_solved():
    """U_0 is the mean of the first ten; from U = .4 on, shares of .2 bring U = .2 + .2 * .9^n below .3 at the seventh."""
    found = targets([0.3, 0.5] * 5 + [0.4] * 2 + [0.2] * 28, controller(**SOLVES))
    assert found[:19] == pytest.approx([0.8] * 19)
    assert found[18:] == pytest.approx([0.8 - 0.4 * step / 21 for step in range(22)]), "in a straight line from update 19 to 40"


def test_target_settles_at_the_latest_after_hold():
    """Prompts that nobody ever solves: the clock decides. Nothing to find: as soon as that is known."""
    found = targets([0.4] * 40, controller(**SOLVES))
    assert found[:30] == pytest.approx([0.8] * 30) and found[39] == pytest.approx(0.4)
    assert targets([0.0] * 11, controller(**SOLVES))[9:] == pytest.approx([0.8, 0.8 - 0.4 / 30])


def test_settling_goes_on_after_a_checkpoint():
    """What was seen of the prompts is part of the state."""
    shares = [0.4] * 12 + [0.2] * 28
    whole = targets(shares, controller(**SOLVES))
    for cut in (5, 15, 25):
        first, second = controller(**SOLVES), controller(**SOLVES)
        targets(shares[:cut], first)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert targets(shares[cut:], second) == whole[cut:]


@pytest.mark.parametrize("share", [None, -0.1, 1.5, float("nan")])
def test_settling_needs_the_share_of_unsolved_prompts(share):
    ctl = controller(**SOLVES)
    with pytest.raises(ValueError, match=r"unsolved must be given in \[0, 1\] with settle_unsolved or patience, got"):
        ctl.update(1.0, 1, unsolved=share)
    assert ctl.state_dict() == controller(**SOLVES).state_dict(), "what is refused changes nothing"


def test_settling_needs_an_end():
    with pytest.raises(ValueError, match=r"settle_unsolved must be None without tau_end, got 0\.5"):
        controller(settle_unsolved=0.5)


def test_entropy_of_responses():
    """The same rule on nats per response: what it is given is all that differs."""
    ctl = controller(tau=0.8, quantity="response")
    ctl.update(100.0, 10)
    assert ctl.target == pytest.approx(8.0) and ctl.last_entropy == 10.0


@pytest.mark.parametrize("kind", ["log_pi", "self_tuned"])
def test_rivals_lift_entropy_and_let_go(kind):
    ctl = controller(kind=kind, target=1.0)
    assert feed(ctl, [0.7] * 60)[-1] > 0.1
    assert feed(ctl, [3.0] * 20)[-1] == 0.0


def test_self_tuned_learns_the_response():
    """H changes by (0.2 alpha - 0.03) H* a step: H settles at its target, and what is learned predicts that alpha = 0.15 holds it there."""
    ctl, entropy = controller(kind="self_tuned", target=1.0, ema=0.0), 0.8
    for _ in range(80):
        entropy += 0.2 * ctl.update(entropy, 1) - 0.03
    drift, gain = ctl.state_dict()["rule"]["model"]
    assert entropy == pytest.approx(1.0, abs=0.03) and drift + 0.15 * gain == pytest.approx(0.0, abs=0.003)


@pytest.mark.parametrize("start", [0.0, 0.01])
def test_bang_bang_reproduces_the_published_rule(start):
    """c +- delta (+ when H <= H*), clipped; applied only while the last H <= H*. Skywork-OR1 constants, and those of TRL."""
    entropies = [0.5, 0.3, 0.2, 0.1, 0.25, 0.05, 0.05, 0.05, 0.9]
    for delta, low, high in ((1e-4, 0.0, 0.005), (0.005, 0.0, 1.0)):
        ctl = controller(kind="bang_bang", target=0.2, step=delta, coef=start, min_coef=low, max_coef=high)
        coef = min(max(start, low), high)
        assert ctl.alpha == coef  # applied before anything was measured
        for entropy in entropies:
            coef = min(coef + delta, high) if entropy <= 0.2 else max(coef - delta, low)
            applied = coef if entropy <= 0.2 else 0.0
            assert ctl.update(entropy * 10, 10) == pytest.approx(applied, abs=1e-15)


def test_a_coefficient_at_zero_rises_again():
    """The rule is switched by `enabled`, never by coef != 0: gated on that, a coefficient that reached 0 would stay there."""
    for kind in ("bang_bang", "integral", "proportional", "aer", "balance"):
        ctl = controller(kind=kind, target=0.5, ki=0.1)
        feed(ctl, [2.0] * 20)
        assert ctl.enabled and ctl.alpha == 0.0, kind
        assert feed(ctl, [0.1] * 5)[-1] > 0.0, kind
    assert not controller(kind="off").enabled


def test_proportional_and_integral_by_hand():
    ctl = controller(kind="proportional", target=0.9, kp=0.03)
    assert feed(ctl, [0.4, 1.2]) == pytest.approx([0.015, 0.0])
    ctl = controller(kind="integral", target=0.5, ki=0.1, coef=0.2, max_coef=0.25)
    assert feed(ctl, [0.7, 0.2, 0.0, 0.0]) == pytest.approx([0.18, 0.21, 0.25, 0.25])


def test_fixed_never_moves():
    ctl = controller(kind="fixed", coef=0.1)
    assert feed(ctl, [0.0, 5.0, 0.3]) == [0.1, 0.1, 0.1] and not ctl.saturated


def test_difficulty_weights():
    accuracy = torch.tensor([0.0, 0.25, 0.5, 1.0])
    weights = lambda **o: difficulty_weights(accuracy, EntropyControlConfig(**o), None)  # noqa: E731

    def shape(**options):
        """Relative to the largest: their mean is 1."""
        found = weights(**options)
        assert found.mean() == pytest.approx(1.0)
        return (found / found.max()).tolist()

    assert shape(difficulty="linear", rho=0.5) == pytest.approx([1.0, 0.75, 0.5, 0.0])
    assert shape(difficulty="hinge", rho=0.5) == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert shape(difficulty="hinge", rho=0.5, least_weight=0.3) == pytest.approx([1.0, 0.5, 0.3, 0.3])
    assert shape(difficulty="uniform") == pytest.approx([1.0] * 4)
    assert shape(difficulty="linear", include_all_wrong=False) == pytest.approx([0.0, 1.0, 2 / 3, 0.0])
    assert shape(difficulty="uniform", include_all_wrong=False) == pytest.approx([0.0, 1.0, 1.0, 1.0])


def test_whose_entropy_is_held():
    """v(q): what is left of the weights without least_weight, surplus and normalization."""
    accuracy = [0.0, 0.25, 0.5, 1.0]
    assert controller(rho=0.5).held(accuracy).tolist() == [1.0] * 4
    assert controller(held="difficult", rho=0.5, least_weight=0.5, surplus=1.0).held(accuracy).tolist() == [1.0, 0.5, 0.0, 0.0]
    assert controller(held="difficult", rho=0.5, difficulty="linear").held(accuracy).tolist() == [1.0, 0.75, 0.5, 0.0]
    with pytest.raises(ValueError, match=r"group_accuracy must be in \[0, 1\], got -1 to 1"):  # rewards are not accuracies
        AdaptiveEntropyController(EntropyControlConfig()).coefficients([-1.0, 1.0])
    with pytest.raises(ValueError, match=r"group_accuracy must have shape \(P,\), got \(1, 2\)"):
        controller().held([[0.0, 1.0]])
    with pytest.raises(ValueError, match="held must be 'all' for difficulty='uniform'"):
        controller(held="difficult", difficulty="uniform")
    with pytest.raises(ValueError, match="include_all_wrong must be True for held='difficult'"):
        controller(held="difficult", include_all_wrong=False)
    with pytest.raises(ValueError, match="held must be one of all, difficult, got 'hard'"):
        controller(held="hard")


def test_normalized_weights_have_mean_one_and_a_floor():
    ctl = controller()
    assert ctl.weights(torch.tensor([0.0, 0.5, 0.9, 0.2])).mean() == pytest.approx(1.0)
    assert torch.all(ctl.weights(torch.ones(3)) == 0)
    assert torch.all(controller(least_weight=0.5).weights(torch.ones(3)) == 1), "all solved: as uniform"
    assert ctl.weights(torch.tensor([0.99, 1.0])).tolist() == pytest.approx([0.2, 0.0], rel=1e-4)  # 0.01 / WEIGHT_FLOOR


def test_prompts_above_the_target_get_less():
    """Full weight up to H*, none from (1 + surplus) H* on; nothing is known of H* before the first update."""
    ctl = controller(surplus=0.5, tau=0.8, difficulty="uniform")
    accuracy, entropy = torch.zeros(5), [0.1, 0.8, 1.0, 1.2, 9.0]
    assert ctl.weights(accuracy, entropy).tolist() == [1.0] * 5
    feed(ctl, [1.0])
    assert ctl.weights(accuracy, entropy).tolist() == pytest.approx([2.0, 2.0, 1.0, 0.0, 0.0], abs=1e-5), "of mean 1/2"
    hinge = controller(surplus=0.5, target=0.8, rho=0.5, kind="fixed", coef=0.2)
    found = hinge.coefficients([0.0, 0.25, 0.0], [0.8, 0.8, 1.0])
    assert found.tolist() == pytest.approx([0.3, 0.15, 0.15]), "weights 1, .5, .5 of mean 2/3"


def test_surplus_needs_the_entropy_of_each_prompt():
    ctl = controller(surplus=1.0)
    with pytest.raises(ValueError, match="group_entropy must be given with surplus, got None"):
        ctl.coefficients([0.0, 0.5])
    with pytest.raises(ValueError, match=r"group_entropy must have shape \(2,\), got \(3,\)"):
        ctl.coefficients([0.0, 0.5], [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="surplus must be > 0 or None, got 0"):
        controller(surplus=0.0)


def test_coefficients_are_alpha_times_weights_and_fixed_between_updates():
    ctl = controller(kind="fixed", coef=0.3)
    accuracy = torch.tensor([0.0, 0.5])
    torch.testing.assert_close(ctl.coefficients(accuracy), torch.tensor([0.4, 0.2]))
    torch.testing.assert_close(ctl.coefficients([1.0, 1.0]), torch.zeros(2))
    torch.testing.assert_close(ctl.coefficients(accuracy), torch.tensor([0.4, 0.2]))
    assert torch.all(controller(kind="off", coef=0.5).coefficients(accuracy) == 0)


def test_sum_and_count_not_mean_of_means():
    """Two micro-batches of 1 and 3 tokens: the caller adds sums and counts, the controller sees their mean."""
    ctl = controller(kind="balance")
    ctl.update(torch.tensor(1.0) + torch.tensor(9.0), torch.tensor(1) + torch.tensor(3), (torch.tensor(-0.4), torch.tensor(0.8)))
    assert ctl.balance == pytest.approx(0.5)
    assert ctl.initial_entropy == 2.5


def test_a_step_without_tokens_changes_nothing():
    ctl = controller()
    feed(ctl, [1.0, 0.5])
    before = ctl.state_dict()
    ctl.update(0.0, 0)
    assert ctl.state_dict() == before


def test_entropy_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="entropy_sum must be finite, got nan over 10 tokens"):
        controller().update(float("nan"), 10)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_state_survives_json_and_goes_on_exactly(kind):
    path = [1.0, 0.8, 0.3, 0.1, 0.1, 0.6, 1.5, 0.2]
    options = {"kind": kind, "coef": 0.05}
    straight = controller(**options)
    expected = feed(straight, path)
    first, second = controller(**options), controller(**options)
    feed(first, path[:3])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.alpha == first.alpha and second.target == first.target
    assert feed(second, path[3:]) == expected[3:]
    assert second.state_dict() == straight.state_dict()


def test_state_of_another_rule_is_refused():
    with pytest.raises(ValueError, match="state must come from a controller of kind 'aer', got 'fixed'"):
        controller().load_state_dict(controller(kind="fixed").state_dict())


def test_state_of_another_version_is_refused_and_changes_nothing():
    held = controller()
    before = held.state_dict()
    old = {name: value for name, value in controller(coef=0.2).state_dict().items() if name not in ("target", "updates")}
    with pytest.raises(ValueError, match=r"state must hold kind, coef, .*, updates, got none of target, updates$"):
        held.load_state_dict(old)
    assert held.state_dict() == before


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "pid"}, "kind must be one of aer, balance, off, fixed, bang_bang, proportional, integral, log_pi, self_tuned, got 'pid'"),
        ({"tau": 0.0}, "tau must be > 0, got 0.0"),
        ({"rho": 1.5}, r"rho must be in \(0, 1\], got 1.5"),
        ({"least_weight": -0.1}, r"least_weight must be in \[0, 1\], got -0.1"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ({"max_coef": 0.1, "min_coef": 0.2}, r"max_coef must be >= min_coef \(0.2\), got 0.1"),
        ({"target": 0.0}, "target must be > 0 for kind='aer'"),
        ({"difficulty": "cubic"}, "difficulty must be one of hinge, linear, uniform, got 'cubic'"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        EntropyControlConfig(**options)


def test_bad_accuracy_shape():
    with pytest.raises(ValueError, match=r"group_accuracy must have shape \(P,\), got \(2, 2\)"):
        controller().coefficients(torch.zeros(2, 2))
