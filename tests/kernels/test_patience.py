"""AER that waits: how it decides, what it leaves alone, and that a checkpoint keeps it."""

from __future__ import annotations

import json

import pytest
import torch

from aer_kernels import AdaptiveEntropyController, EntropyControlConfig
from aer_kernels.methods import AER, Measured

PATIENCE = 8
WAITS = {"tau": 1.2, "patience": PATIENCE, "ema": 0.0}


def waits(**options: object) -> AdaptiveEntropyController:
    return AdaptiveEntropyController(EntropyControlConfig(**{**WAITS, **options}))


def applied(shares: list[float], ctl: AdaptiveEntropyController) -> list[float]:
    """The coefficient after each update, with entropy at half of its start from the second on."""
    return [ctl.update(1.0 if ctl.updates == 0 else 0.5, 1, unsolved=share) for share in shares]


def begins(shares: list[float], ctl: AdaptiveEntropyController | None = None) -> int | None:
    """The update after which there is a bonus, counted from 1."""
    found = applied(shares, waits() if ctl is None else ctl)
    return next((update for update, coef in enumerate(found, 1) if coef > 0), None)


def test_it_begins_where_nothing_is_solved():
    """The update that decides moves the rule, so that the next ones have a bonus."""
    assert begins([0.4] * 30) == PATIENCE


def test_it_never_begins_where_prompts_become_solved():
    """Chains of graded difficulty. It is decided once: what comes back later, by chance, is no reason to begin."""
    assert begins([0.3, 0.2, 0.1, 0.1, *[0.05, 0.1] * 30]) is None
    assert begins([0.3, 0.2, *[0.0] * 6, *[0.9] * 40]) is None


def test_half_is_what_counts_and_means_over_quarter_and_half():
    """Of eight updates the first two have a mean of .4. Half of it over the last four, however it is spread, is enough."""
    assert begins([0.3, 0.5, 0.0, 0.0] + [0.0, 0.4, 0.0, 0.4] + [0.0] * 3) == 8
    assert begins([0.3, 0.5, 1.0, 1.0] + [0.0, 0.4, 0.0, 0.39] + [1.0] * 8) is None
    assert begins([0.3, 0.5, 1.0, 1.0] + [0.0, 0.4, 0.0, 0.4] + [0.0] * 3) == 8, "the first quarter alone is the start"
    assert begins([0.4, 0.4, 0.0, 0.0] + [0.4, 0.4, 0.0, 0.0] + [0.0] * 3) == 8, "all of the last half counts"


def test_nothing_unsolved():
    """Half of nothing is nothing; it is no reason to begin."""
    assert begins([0.0] * 30) is None
    assert begins([0.0] * 7 + [0.1] * 10) == 8, "but one that is unsolved is"


def test_what_is_decided_stays():
    ctl = waits()
    applied([0.4] * 9, ctl)
    assert all(coef > 0 for coef in applied([0.0] * 30, ctl))


def test_target_and_smoothing_go_on_while_it_waits():
    """H_0 is that of the first update, and Hbar follows, so that the rule begins with what is there."""
    ctl, plain = waits(ema=0.5), waits(ema=0.5, patience=None)
    applied([0.4] * 7, ctl), applied([0.4] * 7, plain)
    assert (ctl.initial_entropy, ctl.smoothed_entropy, ctl.target) == (plain.initial_entropy, plain.smoothed_entropy, plain.target)
    assert ctl.alpha == 0.0 and plain.alpha > 0 and ctl.state_dict()["rule"] == {"integral": 0.0}


@pytest.mark.parametrize("kind", ["fixed", "bang_bang", "integral", "balance"])
def test_every_rule_waits(kind):
    """A rule that starts at a coefficient gives none, and has not moved it when it begins."""
    ctl = waits(kind=kind, coef=0.1, ki=0.1)
    for _ in range(PATIENCE):
        assert ctl.coefficients(torch.zeros(3)).tolist() == [0.0] * 3
        ctl.update(0.5, 1, [-1.0, 1.0], unsolved=0.4)
    ctl.update(0.4, 1, [-1.0, 1.0], unsolved=0.4)
    assert ctl.alpha > 0.0
    assert not waits(kind=kind, coef=0.6).saturated
    assert waits(kind=kind, coef=0.6).update(0.5, 1, [-1.0, 1.0], unsolved=0.4) == 0.0


def test_what_has_no_bonus_has_nothing_to_wait_for():
    assert waits(kind="off").update(1.0, 1) == 0.0


def test_without_patience_nothing_waits():
    assert begins([0.0] * 3, waits(patience=None)) == 1


@pytest.mark.parametrize("cut", [2, 7, 8, 9, 12])
def test_waiting_goes_on_after_a_checkpoint(cut):
    shares = [0.4] * 4 + [0.1, 0.1, 0.4, 0.4] + [0.3] * 12
    whole, first, second = applied(shares, waits()), waits(), waits()
    applied(shares[:cut], first)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert applied(shares[cut:], second) == whole[cut:]


def test_a_state_shares_nothing():
    """What is saved or restored does not move when the controller does."""
    ctl, other = waits(), waits()
    applied([0.4] * 5, ctl)
    before = ctl.state_dict()
    kept = json.dumps(before)
    other.load_state_dict(before)
    applied([0.1] * 9, other), applied([0.1] * 1, ctl)
    assert json.dumps(before) == kept


@pytest.mark.parametrize("share", [None, -0.1, 1.5, float("nan")])
def test_it_needs_the_share_of_unsolved_prompts(share):
    ctl = waits()
    with pytest.raises(ValueError, match=r"unsolved must be given in \[0, 1\] with settle_unsolved or patience, got"):
        ctl.update(1.0, 1, unsolved=share)
    assert ctl.state_dict() == waits().state_dict(), "what is refused changes nothing"


def test_the_method_names_a_target_only_while_it_holds_it():
    method = AER(EntropyControlConfig(**WAITS))
    for _ in range(PATIENCE - 1):
        method.update(Measured(1.0, 1.0, 1.0, 0.4))
        assert method.status()["target"] is None and method.status()["initial"] == 1.0
    method.update(Measured(1.0, 1.0, 1.0, 0.4))
    assert method.status()["target"] == pytest.approx(1.2)
    assert AER(EntropyControlConfig(kind="fixed", **WAITS)).learns, "when it begins depends on what it is told"


@pytest.mark.parametrize(("seen", "patience", "late"), [(6, None, 0), (6, 16, 9), (6, 4, None), (8, None, 0), (8, 16, 7), (8, 4, None)])
def test_going_on_with_another_patience(seen, patience, late):
    """It decides by the shares that were seen, as if it had been so from the start; None begins at once."""
    first, second = waits(), waits(patience=patience)
    applied([0.4] * 2 + [0.1] * (seen - 2), first)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    found = applied([0.4] * 20, second)
    assert [coef > 0 for coef in found] == [late is not None and update >= late for update in range(20)]


def test_a_state_without_shares():
    """From a run that did not wait: it begins to wait there."""
    old = waits(patience=None).state_dict()
    assert "unsolved" not in old
    ctl = waits()
    ctl.load_state_dict(old)
    assert begins([0.4] * 30, ctl) == PATIENCE


@pytest.mark.parametrize("patience", [3, -1, 4.5, float("inf")])
def test_patience_is_four_at_least(patience):
    with pytest.raises(ValueError, match=f"patience must be an integer >= 4 or None, got {patience}"):
        waits(patience=patience)


def test_patience_ends_before_the_run():
    with pytest.raises(ValueError, match=r"patience must be less than updates \(8\), or there is never a bonus, got 8"):
        waits(updates=8)
    waits(updates=9)
