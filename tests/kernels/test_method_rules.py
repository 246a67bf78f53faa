"""Methods that decide by each token's log-prob and entropy, in numbers: by hand, or found once with the authors' own functions.

A loss written out here is the paper's; its gradient must be that of the fused loss with the method's terms.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from aer_kernels.methods import Measured
from aer_kernels.methods.covariance import part_of, token_covariance
from aer_kernels.methods.pepo import relative_entropy
from aer_kernels.methods.steer import entropy_change
from tests.kernels.token_batches import Problem, batch, feed, make, tokens_of

# --- covariance


def test_covariance_by_hand():
    tokens = tokens_of([[-0.1, -2.0, -0.3, -1.0], [-0.2, -0.4, -3.0, -0.1]], [1.0, -0.5])
    expected = [0.590625, -0.834375, 0.440625, -0.084375, -0.515625, -0.365625, 1.584375, -0.590625]
    assert token_covariance(tokens).tolist() == pytest.approx(expected, abs=1e-6)
    held = make("kl_cov", share=0.25).terms(tokens)
    assert held.divergence_coef.tolist() == [1, 0, 0, 0, 0, 0, 1, 0] and (held.clip_low, held.clip_high) == (1.0, 1e6)
    drawn = make("clip_cov", share=0.3, low=0.4, high=1.5).terms(tokens)
    assert set((drawn.weight == 0).nonzero().flatten().tolist()) == {0, 2} and (drawn.clip_low, drawn.clip_high) == (1.0, 1.0)
    one = make("clip_cov", share=1e-6, low=0.4, high=1.5)
    picked = [int((one.terms(replace(tokens, seed=seed)).weight == 0).nonzero()) for seed in range(40)]
    assert set(picked) == {0, 2}, "at least one, at random"
    assert make("clip_cov", share=0.0, low=-9.0, high=9.0).terms(tokens).weight.min() == 1


def test_the_number_of_drawn_tokens_is_that_of_the_update():
    """At a share of 2e-4 the floor of one token decides in small micro-batches: 64 tokens of 8,000 where the update has one."""
    assert part_of(8000, 2e-4) == 1 and 64 * part_of(8000 // 64, 2e-4) == 64
    assert part_of(0, 0.5) == 0 and part_of(100, 0.0) == 0 and part_of(999, 0.01) == 9


def test_covariance_methods_are_their_papers_losses():
    problem = Problem(drift=0.3)
    terms = make("kl_cov", share=0.3, coef=0.7).terms(problem.tokens)
    loss = (-problem.ratio * problem.advantages + terms.divergence_coef * (problem.logprobs - problem.old).abs()).mean()
    assert 0 < (terms.divergence_coef > 0).sum() < 10
    problem.check(loss, terms)
    terms = make("clip_cov", share=0.3, low=-0.5).terms(problem.tokens)
    assert (terms.weight == 0).sum() == 6
    problem.check(-(problem.clipped(1.0, 1.0) * terms.weight).mean(), terms)


# --- STEER

STEER = tokens_of(torch.tensor([[0.9, 0.5, 0.05], [0.2, 0.7, 0.99]]).log().tolist(), [1.0, -0.5], [[0.4, 1.0, 2.5], [1.8, 0.9, 0.05]])
STEER_WEIGHTS = {
    "exponential": [0.986136, 0.929883, 0.8, 0.964528, 0.96212, 0.999905],
    "linear": [1.175134, 1.069801, 0.8, 1.1354, 1.130919, 1.2],
}
"""Of the authors' function."""


@pytest.mark.parametrize("mapping", STEER_WEIGHTS)
def test_steer_by_the_authors_numbers(mapping):
    assert make("steer", mapping=mapping).terms(STEER).weight.tolist() == pytest.approx(STEER_WEIGHTS[mapping], abs=1e-6)


def test_steer_forms_by_hand():
    """p = .5, H = 1, A = 1: change .5 * .3069 / .5, without 1 / p, and without 1 - p."""
    tokens = tokens_of([[math.log(0.5)]], [1.0], [[1.0]])
    surprise = 1 - math.log(2)
    for form, change in (("released", 0.5 * surprise), ("theorem", 0.25 * surprise), ("slopes", 0.5 * surprise)):
        assert entropy_change(tokens, form).tolist() == pytest.approx([change])
        assert make("steer", form=form).terms(tokens).weight.tolist() == pytest.approx([0.8]), "the largest change"
    assert make("steer").terms(tokens_of([[-1e-9]], [1.0], [[0.0]])).weight.tolist() == pytest.approx([1.0]), "hardly any change"
    assert make("steer", mapping="linear").terms(tokens).weight.tolist() == pytest.approx([1.0]), "all equal: the middle"


def test_steer_would_depend_on_the_cut():
    """Over each response alone, as over micro-batches in the release, weights differ by .31."""
    parts = []
    for response in range(2):
        mine = STEER.response == response
        part = replace(
            STEER,
            logprobs=STEER.logprobs[mine],
            advantages=STEER.advantages[mine],
            response=torch.zeros(3, dtype=torch.int64),
            position=STEER.position[mine],
            prompt=STEER.prompt[:1],
            entropy=STEER.entropy[mine],
        )
        parts += make("steer", mapping="linear").terms(part).weight.tolist()
    assert parts == pytest.approx([1.2, 1.087685, 0.8, 0.825948, 0.8, 1.2], abs=1e-6), "the authors' function, response by response"


def test_slopes_are_the_change_of_entropy_but_for_the_mean():
    """The first-order change of a row along the policy gradient is -A (S_y - sum_v p_v S_v), form exact; form slopes leaves out its last
    sum."""
    logits = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    p = logits.softmax(-1)
    entropy = -(p * p.log()).sum(-1)
    drawn, advantage, step = torch.tensor([0, 3, 5, 1, 8]), torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64), 1e-6
    moved = logits + step * advantage[:, None] * (F.one_hot(drawn, 9) - p)
    after = -(moved.softmax(-1) * moved.log_softmax(-1)).sum(-1)
    row = torch.arange(5)
    tokens = tokens_of(p[row, drawn].log()[:, None].tolist(), advantage.tolist(), entropy[:, None].tolist())
    mean = (p.square() * (p.log() + entropy[:, None])).sum(-1)
    found = (after - entropy) / step
    exact = entropy_change(replace(tokens, mean_surprise=mean.float()), "exact")
    torch.testing.assert_close(found.abs(), exact, rtol=1e-4, atol=1e-5)
    found = found - advantage * mean
    torch.testing.assert_close(found.abs(), entropy_change(tokens, "slopes"), rtol=1e-4, atol=1e-5)


def test_steer_is_its_papers_loss():
    problem = Problem(seed=4, drift=0.3)
    terms = make("steer").terms(problem.tokens)
    dual = torch.where(
        problem.advantages < 0, torch.maximum(problem.clipped(0.2, 0.28), 10.0 * problem.advantages), problem.clipped(0.2, 0.28)
    )
    problem.check(-(dual * terms.weight).mean(), terms, clip_low=0.2, clip_high=0.28, dual_clip=10.0)


# --- methods by the entropy of each token


def test_epo_is_the_gradient_of_its_papers_loss():
    entropy = torch.tensor([0.1, 0.4, 0.7, 1.3, 2.2], dtype=torch.float64, requires_grad=True)
    method = make("epo", low=0.5, alpha=0.1, updates=10)
    tokens = tokens_of([[-1.0] * 5], [1.0], [entropy.tolist()])
    assert torch.equal(method.terms(tokens).entropy_coef, torch.ones(5)), "no history, no corridor"
    for history in (0.4, 0.8):
        method.update(Measured(history * 5, 5.0, 1.0))
    beta, mean = 1 + math.exp(-3.0 * 2 / 5), 0.6
    assert method.history == pytest.approx(mean) and method.beta == pytest.approx(beta)
    penalty = (0.5 * mean - entropy).clamp(min=0) + (entropy - 2.0 * mean).clamp(min=0)
    loss = -0.001 * (entropy.mean() - beta * (0.1 * penalty).mean())
    (expected,) = torch.autograd.grad(loss, entropy)
    terms = method.terms(tokens)
    torch.testing.assert_close(-terms.entropy_scale * terms.entropy_coef.double() / 5, expected, rtol=1e-6, atol=0)
    assert terms.entropy_coef.tolist() == pytest.approx([1 + beta * 0.1, 1, 1, 1 - beta * 0.1, 1 - beta * 0.1])
    fixed = make("epo", alpha=0.0, updates=10)
    fixed.update(Measured(1.0, 5.0, 1.0))
    assert fixed.terms(tokens).entropy_coef.tolist() == [1.0] * 5, "alpha 0 is a fixed coefficient"
    with pytest.raises(ValueError, match="updates must be given for kind 'epo', over which beta falls, got None"):
        make("epo")


@pytest.mark.parametrize("top_p", [0.8, None])
def test_siren_is_the_gradient_of_its_papers_loss(top_p):
    """Against autograd of beta (Hbar - anchor)^2 over the whole update, whose mean of parts is another number."""
    problem, beta, anchor = Problem(seed=5, lengths=(11, 3, 6, 20)), 0.05, 1.1
    method = make("siren", beta=beta, top_p=top_p)
    entropy = problem.entropy if top_p is None else problem.entropy_over(method.kept)
    method.load_state_dict({"anchor": anchor, "entropy": None})
    response, means = problem.tokens.response, []
    for number in range(4):
        mine = entropy[response == number]
        means.append(mine[mine > mine.detach().quantile(0.8)].mean())
    mean = torch.stack(means).mean()
    tokens = replace(problem.tokens, kept_entropy=entropy.detach().float())
    terms = method.terms(tokens)
    loss = beta * (mean - anchor) ** 2 - problem.clipped().mean()
    problem.check(loss, terms, tolerance=2e-6, kept=method.kept)
    assert terms.entropy_scale == pytest.approx(2 * beta * (anchor - mean.item()))
    measured = Measured(float((terms.held.double() * entropy.detach()).sum()), float(terms.held.sum()), 1.0)
    method.update(measured)
    assert method.status()["controlled"] == pytest.approx(mean.item(), rel=1e-6), "what is measured with `held` is Hbar"
    assert method.status()["target"] == anchor
    fresh = make("siren", top_p=top_p)
    assert fresh.terms(tokens).entropy_scale == 0.0
    fresh.update(measured)
    assert fresh.status()["target"] == pytest.approx(mean.item()), "the first update is the anchor"


def test_peaks_by_hand():
    tokens = tokens_of([[-1.0] * 6, [-1.0] * 6], [1.0, 1.0], [[0.1, 0.9, 0.2, 0.3, 0.4, 0.5], [0.7] * 6])
    terms = make("siren", top_p=None).terms(tokens)
    assert terms.held.tolist() == [0, 1, 0, 0, 0, 0] + [0] * 6, "above .5; a response of equal tokens has no peak"
    assert terms.entropy_coef.tolist() == [0, 12, 0, 0, 0, 0] + [0] * 6, "times the loss tokens, over one response with one peak"
    with pytest.raises(ValueError, match="kept_entropy must be given in the TokenBatch for this method, got None"):
        make("siren").terms(tokens)


def test_aent_is_the_gradient_of_its_papers_loss_and_moves_by_hand():
    problem = Problem(seed=6, drift=0.2)
    method = make("aent", dropped=0.6, start=0.01, step=0.1, most=0.02)
    entropy = problem.entropy_over(method.kept)
    assert ((problem.entropy - entropy) > 1e-3).sum() > 15
    terms = method.terms(replace(problem.tokens, kept_entropy=entropy.detach().float()))
    problem.check(-problem.clipped().mean() - 0.01 * entropy.mean(), terms, kept=method.kept)
    found = feed(method, [0.05, 0.1, 0.5, 0.53, 0.0, 0.0])
    assert found == pytest.approx([0.015, 0.015, 0.015, 0.012, 0.02, 0.02]), "by step times what is outside .1 to .5"
    assert method.status()["saturated"] == 1
    feed(method, [0.2])
    assert method.status()["saturated"] == 0, "inside the band nothing moves it"


def test_pepo_by_hand_and_its_properties():
    tokens = tokens_of([[-1.0] * 3, [-1.0] * 3], [1.0, -1.0], [[0.0, math.log(2.0), math.log(3.0)]] * 2)
    share = torch.tensor([1 / 3, 2 / 6, 3 / 5])
    assert make("pepo", window=3).terms(tokens).weight.tolist() == pytest.approx([*(3 * share / share.sum()).tolist(), 1, 1, 1])
    many = batch(((50, 3), (1, 20)), seed=2)
    weights = relative_entropy(many, 5)
    torch.testing.assert_close(many.per_response(weights), torch.tensor([50.0, 3.0, 1.0, 20.0], dtype=torch.float64))
    torch.testing.assert_close(relative_entropy(replace(many, entropy=many.entropy + 3), 5), weights, rtol=1e-5, atol=1e-6)
    assert torch.equal(make("pepo", window=1).terms(many).weight, torch.ones(74)), "a token alone is like itself"


def test_entropy_advantage_by_hand():
    tokens = tokens_of([[-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]], [2.0, -0.5, 0.0], [[0.5, 9.0]] * 3)
    assert make("entropy_advantage").terms(tokens).shift.tolist() == pytest.approx([0.2, 1.0, 0.2, 0.25, 0.0, 0.0])


def test_erc_by_hand_and_as_a_gradient():
    tokens = tokens_of([[-1.0] * 5], [1.0], [[1.0, 1.0, 1.0, 1.0, 0.0]])
    assert make("erc").terms(tokens).weight.tolist() == [1.0] * 5, "the policy that sampled"
    moved = replace(tokens, current_entropy=torch.tensor([0.94, 0.96, 1.04, 1.06, 1e-7]))
    assert make("erc").terms(moved).weight.tolist() == [0, 1, 1, 0, 1], "rounding near 0 is no change"
    problem = Problem(seed=13, drift=0.2)
    noise = 1 + 0.1 * torch.randn(len(problem.targets), generator=torch.Generator().manual_seed(0))
    terms = make("erc").terms(replace(problem.tokens, current_entropy=problem.tokens.entropy * noise))
    assert 0 < terms.weight.sum() < len(terms.weight)
    problem.check(-torch.where(terms.weight > 0, problem.clipped(), problem.clipped().detach()).mean(), terms)


# --- options


@pytest.mark.parametrize(
    "kind, options, match",
    [
        ("clip_cov", {"share": 1.5}, r"share must be in \[0, 1\], got 1.5"),
        ("clip_cov", {"high": 0.5}, r"high must be > low \(1.0\), got 0.5"),
        ("clip_cov", {"clip_low": -1.0}, "clip_low must be >= 0 or None, got -1.0"),
        ("kl_cov", {"coef": -1.0}, "coef must be >= 0, got -1.0"),
        ("steer", {"form": "paper"}, "form must be one of 'released', 'theorem', 'slopes', 'exact', got 'paper'"),
        ("steer", {"mapping": "square"}, "mapping must be one of 'exponential', 'linear', got 'square'"),
        ("steer", {"least": 0.0}, r"least must be in \(0, 1\], got 0.0"),
        ("steer", {"most": 0.5}, r"most must be >= least \(0.8\), got 0.5"),
        ("stare", {"weight": 0.9}, r"weight must be in \[1, most = 1.5\], got 0.9"),
        ("stare", {"most": 3.0}, r"most must be in \[1, 2\], got 3.0"),
        ("stare", {"variant": "C2"}, "variant must be one of 'one_sided', 'two_sided', got 'C2'"),
        ("stare", {"entropy_of": "now"}, "entropy_of must be one of 'batch', 'last', got 'now'"),
        ("stare", {"target": 0.0}, "target must be > 0 or None, got 0.0"),
        ("stare", {"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ("mai_clip", {"eps": 1.0}, r"eps must be in \(0, 1\), got 1.0"),
        ("mai_clip", {"cap": 1.0}, "cap must be > 1, got 1.0"),
        ("repo_r", {"start": 1.0}, r"start must be 0 or of a size in \[0.0001, 0.05\], got 1.0"),
        ("repo_r", {"least": 0.0}, "least must be > 0, got 0.0"),
        ("adapo", {"start": 0.1}, r"start must be in \[least, most\] = \[0.2, 1.0\], got 0.1"),
        ("entropic", {"confident": 1.0}, r"confident must be in \(0, 1\), got 1.0"),
        ("entrocraft", {"width": -1.0}, "width must be >= 0, got -1.0"),
        ("erc", {"low": 1.0}, r"low must be in \[0, 1\), got 1.0"),
        ("pepo", {"window": 4}, "window must be odd and >= 1, got 4"),
        ("entropy_advantage", {"kappa": 1.0}, "kappa must be > 1, got 1.0"),
        ("epo", {"high": -1.0}, r"high must be >= low \(0.0\), got -1.0"),
        ("aent", {"dropped": 1.0}, r"dropped must be in \[0, 1\), got 1.0"),
        ("aent", {"start": 1.0}, r"start must be in \[least, most\] = \[1e-05, 0.01\], got 1.0"),
        ("siren", {"top_p": 0.0}, r"top_p must be in \(0, 1\) or None, got 0.0"),
        ("siren", {"share": 1.0}, r"share must be in \[0, 1\), got 1.0"),
        ("arm", {"share": 0.0}, r"share must be in \(0, 1\], got 0.0"),
        ("arm", {"gate": "open"}, "gate must be one of 'mixed_only', 'none_right', got 'open'"),
        ("ares", {"window": 0}, "window must be >= 1, got 0"),
        ("ares", {"wrong_bonus": "none"}, "wrong_bonus must be one of 'centred', 'released', got 'none'"),
        ("relax", {"modes": 1}, "modes must be >= 2, got 1"),
    ],
)
def test_options_out_of_range(kind, options, match):
    with pytest.raises(ValueError, match=match):
        make(kind, **options)
