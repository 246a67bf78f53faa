"""The loss of every method that weighs, shifts or bounds the policy term, written out token by token as its paper has it.

Its gradient must be that of the fused loss with the method's terms, where samples are of an older policy and some ratios are clipped.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from aer_kernels import fused_logprobs, fused_policy_loss
from aer_kernels.entropy_control.config import Kind
from aer_kernels.methods import METHODS, Measured, TokenBatch
from tests.kernels.token_batches import Problem, feed, make, tokens_of


def responses(problem):
    """The places of each response's tokens."""
    return [(problem.tokens.response == number).nonzero().flatten().tolist() for number in range(len(problem.tokens.prompt))]


def positive_advantage(problem, method):
    """lambda = .1 after two updates above the target."""
    feed(method, [0.5, 0.5])
    return -(torch.where(problem.advantages > 0, 0.1, 1.0) * problem.clipped()).mean()


def stare(problem, method):
    """The tenth of least log-prob among those with A > 0, and among those with A < 0: 3 tokens in 10, rounded up."""
    weight = torch.ones_like(problem.old)
    for sign, factor in ((1, 1.1), (-1, 0.9)):
        mine = sorted((problem.old[i].item(), i) for i in range(len(weight)) if sign * problem.advantages[i] > 0)
        for _, i in mine[: math.ceil(0.3 * len(mine))]:
            weight[i] = factor
    assert (weight != 1).sum() >= 4
    return -(weight * problem.clipped()).mean()


def repo_r(problem, method):
    a, lp = problem.advantages, problem.old
    rescaled = torch.where(a > 0, (a * (1 - 0.05 * lp)).clamp(min=0), (a * (1 + 0.05 * lp)).clamp(max=0))
    return -problem.clipped(advantages=rescaled).mean()


def entrocraft(problem, method):
    """Entropy is above the band: positive advantages alone, in the denominator of all."""
    feed(method, [9.0])
    return -problem.clipped()[problem.advantages > 0].sum() / len(problem.old)


def adapo(problem, method):
    feed(method, [0.5])
    return -problem.clipped(high=0.38).mean()


def pepo(problem, method):
    """Windows of 5 tokens that end where the response does."""
    weight, odds = torch.ones_like(problem.old), problem.entropy.detach().exp()
    for mine in responses(problem):
        share = torch.stack([odds[i] / odds[max(mine[0], i - 2) : min(mine[-1], i + 2) + 1].sum() for i in mine])
        weight[mine] = torch.where(problem.advantages[mine] > 0, len(mine) * share / share.sum(), 1.0)
    return -(weight * problem.clipped()).mean()


def entropy_advantage(problem, method):
    added = torch.minimum(0.4 * problem.entropy.detach(), problem.advantages.abs() / 2)
    return -problem.clipped(advantages=problem.advantages + added).mean()


def forking_tokens(problem, method):
    """The 4 of 21 tokens with the largest entropy, in the denominator of all."""
    return -problem.clipped()[problem.entropy.detach().topk(4).indices].sum() / 21


def arm(problem, method):
    """c(q) = exp(-1.2); c(o) of the fifth of least log-prob of each response."""
    advantages = problem.advantages.clone()
    for mine in responses(problem):
        lowest = problem.old[mine].sort().values[: max(1, round(0.2 * len(mine)))]
        advantages[mine] += 0.7 * (math.exp(-1.2) - lowest.mean().exp())
    return -problem.clipped(advantages=advantages).mean()


def token_targets(problem, method):
    """h = .5 at first and a target of .8, then alpha = .2 * .375 + .1 * .375; a reference below the floor is raised to it."""
    method.update(Measured(0.5, 1.0, 1.0))
    own = 0.8 * problem.reference.double().clamp(min=0.3)
    above = problem.entropy.detach() / own - 1
    assert (problem.reference < 0.3).any() and (above < 0).any() and (above > 0.5).any() and ((above > 0) & (above < 0.5)).any()
    return -(problem.clipped() + 0.1125 * (1 - above / 0.5).clamp(0, 1) * problem.entropy).mean()


def token_targets_above(problem, method):
    """h = 1 and a target of .8: alpha = -.2 * .25 - .1 * .25, for tokens above their own target, in full from 1.2 times it on."""
    method.update(Measured(1.0, 1.0, 1.0))
    above = problem.entropy.detach() / (0.8 * problem.reference.double().clamp(min=0.3)) - 1
    assert (above < 0).any() and (above > 0.2).any() and ((above > 0) & (above < 0.2)).any()
    return -(problem.clipped() - 0.075 * (above / 0.2).clamp(0, 1) * problem.entropy).mean()


LOSSES = {
    positive_advantage: {},
    stare: {"share": 0.3, "variant": "two_sided", "target": 99.0},
    repo_r: {"start": 0.05},
    entrocraft: {"tau_end": None, "entropy_of": "last"},
    adapo: {"step": 0.1, "target": 1.0},
    pepo: {"window": 5},
    entropy_advantage: {},
    forking_tokens: {},
    arm: {"alpha": 0.7},
    token_targets: {"tau": 0.8, "kp": 0.2, "ki": 0.1, "surplus": 0.5, "floor": 0.3, "forward": 0.0},
    token_targets_above: {"kind": "token_targets", "tau": 0.8, "kp": 0.2, "ki": 0.1, "fall": 1.0, "floor": 0.3, "forward": 0.0},
}
IN_OTHER_FILES = {"aent", "siren", "clip_cov", "kl_cov", "steer", "erc", "epo", "mai_clip", "entropic", "relax"}
"""test_method_rules, test_method_regulators and test_method_responses."""


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("seed", [1, 2])
def test_terms_are_their_papers_loss(loss, seed):
    options = {"kind": loss.__name__} | LOSSES[loss]
    problem, method = Problem(seed=seed, drift=0.5), make(**options)
    expected = loss(problem, method)
    tokens = replace(problem.tokens, prompt_logprobs=torch.full((2,), -1.2), reference_entropy=problem.reference)
    outside = ((problem.ratio - 1).abs() > 0.2) & ((problem.ratio - 1) * problem.advantages > 0)
    assert 0 < outside.sum() < len(outside), "the clip acts on some tokens"
    problem.check(expected, method.terms(tokens))


def test_every_method_has_its_loss_written_out():
    """All but the rules of AER's own coefficient, and ARES, which moves rewards."""
    written = {options.get("kind", loss.__name__) for loss, options in LOSSES.items()} | IN_OTHER_FILES
    assert written == set(METHODS) - set(get_args(Kind)) - {"ares"}


# --- what the papers' pages say of one pass, of cuts and of the first update


def test_a_distance_has_no_gradient_on_policy():
    """KL-Cov at the first update of a batch: |k1| at 0 adds nothing to loss or gradient, so that the method is refused there."""
    problem = Problem(seed=3)
    old = fused_logprobs(problem.hidden.detach(), problem.weight, problem.targets).logprobs
    terms = make("kl_cov", share=0.9).terms(problem.tokens)
    assert terms.divergence_coef.sum() > 15
    found = []
    for coef in (terms.divergence_coef, 0 * terms.divergence_coef):
        hidden = problem.hidden.detach().requires_grad_()
        options = {"advantages": problem.advantages, "old_logprobs": old, "ref_logprobs": old, "kl_coef": coef, "kl": "abs_k1"}
        output = fused_policy_loss(hidden, problem.weight, problem.targets, **options)
        output.loss.backward()
        found.append((output.loss.detach(), hidden.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_any_gradient_of_log_probs_and_entropies_in_one_pass():
    """objective cispo without old log-probs: advantages and entropy_coef are minus the gradient at each log-prob and entropy."""
    problem, generator = Problem(seed=8), torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 21, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad((a * problem.logprobs + b * problem.entropy).sum(), problem.hidden)
    hidden = problem.hidden.detach().requires_grad_()
    options = {"objective": "cispo", "normalizer": 1.0, "entropy_normalizer": 1.0}
    fused_policy_loss(hidden, problem.weight, problem.targets, advantages=-a, entropy_coef=-b, **options).loss.backward()
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-12, atol=1e-12)


def part(tokens: TokenBatch, number: int) -> TokenBatch:
    """One response of an update by itself, as a micro-batch would have it."""
    mine = tokens.response == number
    named = {name: getattr(tokens, name)[mine] for name in ("logprobs", "advantages", "position", "entropy")}
    return replace(tokens, **named, response=torch.zeros(int(mine.sum()), dtype=torch.int64), prompt=tokens.prompt[:1])


def test_stare_would_depend_on_the_cut():
    """Six responses of twenty tokens: chosen in each alone, other tokens are weighed than in the update."""
    generator = torch.Generator().manual_seed(9)
    signs = [1.0, -1.0, 1.0, 0.5, -0.5, -2.0]
    tokens = tokens_of((-3 * torch.rand(6, 20, generator=generator)).tolist(), signs, [[0.1] * 20] * 6)
    method = make("stare", variant="two_sided")
    whole = method.terms(tokens).weight
    cut = torch.cat([method.terms(part(tokens, number)).weight for number in range(6)])
    assert (whole != 1).sum() == (cut != 1).sum() == 12 and (whole != cut).sum() >= 4


def test_siren_would_depend_on_the_cut():
    """The squared distance of the update's mean is not the mean of the parts' squared distances."""
    problem = Problem(seed=5, lengths=(11, 6, 9, 20))
    method = make("siren", top_p=None)
    method.load_state_dict({"anchor": 1.1, "entropy": None})
    whole = method.terms(problem.tokens).entropy_scale / 0.01
    parts = [method.terms(part(problem.tokens, number)).entropy_scale / 0.01 for number in range(4)]
    assert whole == pytest.approx(sum(parts) / 4) and whole**2 < sum(value**2 for value in parts) / 4 - 1e-3
