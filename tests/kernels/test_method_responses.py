"""Methods that decide for whole responses, in numbers: by hand, or found once with the authors' own functions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from aer_kernels.methods import Measured, relax
from aer_kernels.methods.ares import EASY, HARD, MEDIUM, AresConfig, reward_of, window_means, word
from aer_kernels.methods.arm import response_confidence
from aer_kernels.methods.relax import fit_dictionary, random_dictionary, spread
from tests.kernels.token_batches import batch, full, make, tokens_of

# --- ARM, ARES


def test_arm_by_hand():
    tokens = tokens_of([[-3.0, -2.0, -1.0, -0.1, -0.01], [-0.5, -0.4, -0.3, -0.2, -0.1]], [1.0, -1.0])
    assert response_confidence(tokens, 0.2).tolist() == pytest.approx([math.exp(-3), math.exp(-0.5)])
    asked = replace(tokens, prompt_logprobs=torch.tensor([-1.2]))
    shift = make("arm", alpha=1.0).terms(asked).shift
    assert shift.tolist() == pytest.approx([0.2514] * 5 + [-0.3053] * 5, abs=1e-4)
    assert make("arm", alpha=0.0).terms(asked).shift.tolist() == [0.0] * 10
    for accuracy, open_for in ((0.0, ()), (0.5, ("mixed_only", "none_right")), (1.0, ("none_right",))):
        gated = replace(asked, accuracy=torch.tensor([accuracy]))
        for gate in ("mixed_only", "none_right"):
            assert bool(make("arm", alpha=1.0, gate=gate).terms(gated).shift.any()) == (gate in open_for), (accuracy, gate)
    assert response_confidence(batch(), 0.2)[3] == 1.0, "without tokens"
    with pytest.raises(ValueError, match="alpha must be given for kind 'arm', whose paper's value is not known, got None"):
        make("arm")


ARES_TABLE = {
    ("easy", True): (0.0, 0.0, -0.5),
    ("easy", False): (0.15, 0.15, 0.30),
    ("medium", True): (-0.3636, 0.0, -0.5),
    ("medium", False): (0.2, 0.2, 0.3996),
    ("hard", True): (-0.1, 0.4575, 0.5998),
    ("hard", False): (0.3, 0.3, 0.5976),
}
"""The authors' reward for N = 2, 10, 30 with N* = 10."""


@pytest.mark.parametrize("difficulty, right", ARES_TABLE)
def test_ares_by_the_authors_numbers(difficulty, right):
    bucket = {"easy": EASY, "medium": MEDIUM, "hard": HARD}[difficulty]
    number, answers = torch.tensor([2, 10, 30]), torch.full((3,), right)
    found = reward_of(number, 10, answers, bucket, AresConfig(wrong_bonus="released"))
    assert found.tolist() == pytest.approx(ARES_TABLE[difficulty, right], abs=5e-5)
    centred = reward_of(number, 10, answers, bucket, AresConfig())
    if right:
        assert torch.equal(centred, found)
    else:
        assert centred[:2].tolist() == [0.0, 0.0] and centred[2] > 0, "a wrong answer gains nothing up to the margin"


def test_ares_counts_windows_after_trigger_words():
    entropy = [[0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 0.0]]
    tokens = replace(tokens_of([[-1.0] * 7], [1.0], entropy), text=["So", "ĠWait", "x", " wait", "y", "z", "wait"])
    means, whole = window_means(tokens, 2)
    assert means.tolist() == [1.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0] and whole.tolist() == [True] * 5 + [False] * 2
    assert [word(text) for text in tokens.text] == ["so", "wait", "x", "wait", "y", "z", "wait"]


def test_ares_by_hand():
    """A prompt each of easy, medium and hard, two responses of six tokens; the first of each is uncertain once more often."""
    flat, peak = [0.1] * 6, [0.1, 0.9, 0.9, 0.1, 0.1, 0.1]
    tokens = tokens_of([[-1.0] * 6] * 6, [0.0] * 6, [peak, flat] * 3)
    tokens = replace(
        tokens,
        prompt=torch.tensor([0, 0, 1, 1, 2, 2]),
        accuracy=torch.tensor([1.0, 0.5, 0.0]),
        rewards=torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]),
    )
    method = make("ares", window=2, ema=0.5, wrong_bonus="released")
    bonus = method.reward_bonus(tokens)
    assert method.status() == {"uncertain_from": None}
    method.update(Measured(1.0, 36.0, 6.0))
    assert method.status()["uncertain_from"] == pytest.approx((0.1 + (0.9 * 0.85 + 0.5 * 0.15)) / 2, abs=1e-6), (
        "median of the 95th percentiles"
    )
    hits = torch.tensor([1.0, 0.0])
    expected = [
        reward_of(hits, round(0.5), torch.tensor([True, True]), EASY, method.config),
        reward_of(hits, round(0.5), torch.tensor([True, False]), MEDIUM, method.config),
        reward_of(hits, round(0.5), torch.tensor([False, False]), HARD, method.config),
    ]
    torch.testing.assert_close(bonus, torch.cat(expected).float())
    assert make("ares").reward_bonus(full()).shape == (5,) and make("ares", bonus=0.0).reward_bonus(tokens).tolist() == [0.0] * 6
    assert make("ares", triggers=("wait",)).also_needs == {"text"} and make("ares").terms(tokens).moved() == frozenset()


# --- ReLaX


def test_spread_of_known_dynamics(monkeypatch):
    """Observations that shrink by factors of 1, .5 and .25 at each token: the variance of these, but for the ridge."""
    factors = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    observed = torch.tensor([0.6, 0.8, 0.9], dtype=torch.float64) * factors ** torch.arange(6)[:, None]
    states, eye, expected = observed.logit(), torch.eye(3, dtype=torch.float64), float(factors.var(correction=0))
    assert float(spread(states, eye)) == pytest.approx(expected, rel=0.2)
    monkeypatch.setattr(relax, "RIDGE", 1e-12)
    assert float(spread(states, eye)) == pytest.approx(expected, rel=1e-6)
    turned = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    assert float(spread(states @ turned.T, turned.T)) == pytest.approx(expected, rel=1e-6), "the dictionary undoes a rotation"


def test_spread_is_differentiable_and_leaves_short_responses_out():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(30, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    dictionary = random_dictionary(4, 6, 0)
    (found,) = torch.autograd.grad(spread(hidden, dictionary), hidden)
    small = torch.zeros_like(hidden)
    small[7, 2] = 1e-6
    difference = (spread(hidden + small, dictionary) - spread(hidden - small, dictionary)) / 2e-6
    assert float(found[7, 2]) == pytest.approx(float(difference.detach()), rel=1e-5)
    assert all(float(spread(hidden[:length].detach(), dictionary)) == 0.0 for length in (0, 4))
    assert {spread(hidden[:length].bfloat16(), dictionary).dtype for length in (4, 30)} == {torch.float32}
    assert torch.equal(random_dictionary(4, 6, 0), dictionary) and not torch.equal(random_dictionary(4, 6, 1), dictionary)


def test_relax_coefficients_are_the_gradient_of_its_log_mean():
    """The detached softmax against autograd of the log of the mean, over two prompts of which one has a masked response."""
    tokens = full(((3, 1, 5), (2, 0, 4)))
    statistic = tokens.statistic.double().requires_grad_()
    advantages = torch.zeros(6, dtype=torch.float64).index_put_((tokens.response,), tokens.advantages.double())
    there = torch.tensor([True, True, True, True, False, True])
    parts = []
    for prompt in range(2):
        mine = (tokens.prompt == prompt) & there
        parts.append((-advantages[mine].clamp(min=0) * statistic[mine]).exp().mean().log())
    (expected,) = torch.autograd.grad(0.1 * torch.stack(parts).mean(), statistic)
    coef = make("relax").terms(tokens).statistic_coef
    torch.testing.assert_close(coef.double() / there.sum(), expected, rtol=1e-5, atol=1e-8)
    assert make("relax", alpha=0.0).terms(tokens).statistic_coef.abs().max() == 0


def test_a_dictionary_can_be_fitted_and_read(tmp_path):
    generator = torch.Generator().manual_seed(2)
    states = [torch.randn(20, 5, generator=generator).cumsum(0) * 0.3 for _ in range(3)]
    start, fitted = random_dictionary(3, 5, 0), fit_dictionary(states, 3, steps=30)
    missed = [sum(float(relax._missed(hidden.double(), dictionary)) for hidden in states) for dictionary in (start, fitted)]
    assert missed[1] < missed[0]
    torch.save(fitted, tmp_path / "w.pt")
    method = make("relax", modes=3, dictionary=str(tmp_path / "w.pt"))
    assert float(method.statistic(states[0])) == pytest.approx(float(spread(states[0], fitted)))
    for options, match in (
        ({"modes": 4, "dictionary": str(tmp_path / "w.pt")}, r"dictionary must hold a tensor with 4 rows \(modes\), got \(3, 5\)"),
        ({"dictionary": str(tmp_path / "none.pt")}, "dictionary must name a file with a tensor"),
    ):
        with pytest.raises(ValueError, match=match):
            make("relax", **options)
    with pytest.raises(ValueError, match="dictionary must have 7 columns like the hidden states, got 5"):
        method.statistic(torch.randn(9, 7))
    with pytest.raises(ValueError, match="states must hold a response of more than 20 tokens, got none"):
        fit_dictionary(states, 20)
