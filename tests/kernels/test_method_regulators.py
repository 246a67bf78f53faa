"""Methods that hold entropy by moving one number, in numbers: by hand, or found once with the authors' own functions.

A loss written out here is the paper's; its gradient must be that of the fused loss with the method's terms.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from aer_kernels.entropy_control.rules import Seen
from aer_kernels.methods.repo_r import doubled
from tests.kernels.token_batches import Problem, batch, feed, make, tokens_of

# --- STARE


def test_stare_by_the_authors_numbers():
    tokens = tokens_of([[-0.1, -2.0, -0.3, -1.0], [-0.2, -0.4, -3.0, -0.1]], [1.0, -0.5], [[0.1] * 4] * 2)
    one = make("stare", share=0.3).terms(tokens).weight.tolist()
    two = make("stare", share=0.3, variant="two_sided").terms(tokens).weight.tolist()
    assert one == pytest.approx([1, 1.1, 1, 1.1, 1, 1, 1, 1]) and two == pytest.approx([1, 1.1, 1, 1.1, 1, 0.9, 0.9, 1])
    assert make("stare", share=0.01).terms(tokens).weight.tolist() == pytest.approx([1, 1.1, 1, 1, 1, 1, 1, 1]), "at least one"
    above = replace(tokens, entropy=torch.full((8,), 0.3))
    assert make("stare").terms(above).weight.tolist() == [1.0] * 8, "the gate is open below the target alone"
    assert make("stare", share=0.0).terms(tokens).weight.tolist() == [1.0] * 8


def test_stare_moves_its_weight_and_gate():
    """Of the authors' controller: W after entropies .25, .2, .35, .3, .1 with steps of .01."""
    method = make("stare", step=0.01)
    assert feed(method, (0.25, 0.2, 0.35, 0.3, 0.1)) == pytest.approx([1.11, 1.12, 1.11, 1.11, 1.12])
    last = make("stare", entropy_of="last")
    tokens = tokens_of([[-1.0, -2.0]], [1.0])
    gates = [bool((last.terms(tokens).weight > 1).any())]
    for entropy in (0.25, 0.35, 0.3, 0.1):
        feed(last, [entropy])
        gates.append(bool((last.terms(tokens).weight > 1).any()))
    assert gates == [True, True, False, False, True]
    feed(method, [0.1] * 100)
    assert method.regulator.value == 1.5 and method.status()["saturated"] == 1
    feed(method, [0.9] * 100)
    assert method.regulator.value == 1.0 and method.status()["saturated"] == 0, "its neutral end is no limit"


def test_this_updates_entropy_is_seen_before_it_counts():
    """entropy_of batch: the number of the update after; the state moves only once it is made."""
    method, tokens = make("stare", step=0.1), tokens_of([[-1.0, -2.0]], [1.0], [[0.1, 0.1]])
    assert method.terms(tokens).weight.max() == pytest.approx(1.2) and method.regulator.value == 1.1
    assert feed(method, [0.1]) == pytest.approx([1.2])


# --- rivals that move one number


def test_mai_clip_by_hand():
    method = make("mai_clip")
    bounds = []
    for entropy in (0.2, 0.2, 0.4, 0.4, 0.4):
        feed(method, [entropy])
        terms = method.terms(batch())
        bounds.append(round(1 + terms.clip_high, 3))
    assert bounds == [2.75, 3.0, 2.75, 2.5, 2.5] and (terms.clip_low, terms.dual_clip) == (0.6, 50.0)
    assert feed(method, [0.3]) == [0.0], "at the target it stands still"


def test_mai_clip_is_its_papers_loss():
    problem, method = Problem(seed=17, drift=1.5), make("mai_clip")
    feed(method, [0.1] * 3)
    ratio = problem.ratio.clamp(max=50)
    assert ratio.max() > 3.25
    loss = -torch.minimum(ratio * problem.advantages, ratio.clamp(0.4, 2.5 + 0.75) * problem.advantages).mean()
    problem.check(loss, method.terms(problem.tokens))


def test_repo_r_by_hand():
    tokens = tokens_of([[-0.5, -4.0], [-0.5, -4.0]], [2.0, -2.0])
    assert make("repo_r", start=0.05).terms(tokens).weight.tolist() == pytest.approx([1.025, 1.2, 0.975, 0.8])
    assert make("repo_r", start=-0.05).terms(tokens).weight.tolist() == pytest.approx([0.975, 0.8, 1.025, 1.2])
    rare = tokens_of([[-40.0]], [-2.0])
    assert make("repo_r", start=0.05).terms(rare).weight.tolist() == [0.0], "no advantage changes its sign"
    method = make("repo_r", target=1.0)
    assert feed(method, [0.5] * 7) == pytest.approx([0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05])
    assert method.status()["saturated"] == 1
    falling = feed(method, [2.0] * 12)
    assert falling[:9] == pytest.approx([0.05 / 2**k for k in range(1, 9)] + [-1e-4]), "halved, then on the other side"
    assert falling[9:] == pytest.approx([-2e-4, -4e-4, -8e-4]) and feed(method, [1.0]) == pytest.approx([-8e-4])
    assert doubled(Seen(0.5, 0.5, 1.0, None, 1), 0.0, 1e-4) == 0.0


def test_repo_r_anchors_to_the_first_entropy():
    method = make("repo_r")
    feed(method, [2.0])
    assert method.status()["target"] == 2.0 and feed(method, [1.0, 3.0]) == pytest.approx([0.002, 0.001])


def test_adapo_by_hand():
    method = make("adapo", step=0.1, target=1.0)
    assert method.terms(batch()).clip_high == 0.28
    assert feed(method, [0.5, 0.5, 1.0, 2.0, 2.0, 2.0]) == pytest.approx([0.38, 0.48, 0.48, 0.38, 0.28, 0.2])
    with pytest.raises(ValueError, match="step must be given for kind 'adapo', whose paper's value is not known, got None"):
        make("adapo")


def test_entropic_by_the_authors_numbers():
    method = make("entropic", entropy_of="last")
    assert feed(method, (0.3, 0.3, 0.05, 0.05)) == pytest.approx([0.2, 0.202, -0.046, -0.0465])
    assert feed(method, [5.0] * 50)[-1] == 1.0 and method.regulator.state_dict()["rule"]["integral"] < 1.0, "no windup"
    assert method.status()["saturated"] == 1
    assert feed(method, [0.1])[0] == pytest.approx(0.0, abs=0.01), "and back at once"


@pytest.mark.parametrize("entropy", [0.6, 0.02])
def test_entropic_is_its_papers_loss(entropy):
    """Strictly on-policy: alpha times the mean of -r |A| over the confident tokens, beside the clipped term."""
    problem = Problem(seed=11, greedy=True)
    method = make("entropic", confident=0.7, entropy_of="last")
    feed(method, [entropy])
    alpha, confident = method.regulator.value, problem.logprobs.detach() > math.log(0.7)
    assert 0 < confident.sum() < len(confident) and alpha == pytest.approx(entropy - 0.1)
    loss = -problem.clipped().mean() - alpha * (problem.ratio * problem.advantages.abs())[confident].mean()
    problem.check(loss, method.terms(problem.tokens))


def test_entrocraft_by_the_authors_numbers():
    """Two prompts with a right and a wrong answer each, at entropies below, inside and above the band."""
    base = tokens_of([[-1.0]] * 4, [0.707, -0.707, -0.707, 0.707], [[0.5]] * 4)
    base = replace(base, rewards=torch.tensor([1.0, 0.0, 0.0, 1.0]))
    weights = {0.1: [0, 1, 1, 0], 0.45: [1, 1, 1, 1], 0.8: [1, 0, 0, 1]}
    raw = {0.1: [0, -1, -1, 0], 0.45: [0.707, -0.707, -0.707, 0.707], 0.8: [1, 0, 0, 1]}
    for entropy, expected in weights.items():
        tokens = replace(base, entropy=torch.full((4,), entropy))
        options = {"target": 0.5, "width": 0.1, "tau_end": None}
        assert make("entrocraft", **options).terms(tokens).weight.tolist() == expected
        shift = make("entrocraft", raw=True, **options).terms(tokens).shift
        assert (tokens.advantages + shift).tolist() == pytest.approx(raw[entropy])
    all_right = replace(base, advantages=torch.zeros(4), rewards=torch.ones(4), entropy=torch.full((4,), 0.9))
    assert make("entrocraft", raw=True, tau_end=None).terms(all_right).shift.tolist() == [1.0] * 4, "the release trains these too"


def test_entrocrafts_band_moves_in_a_line():
    """From .6 .. .7 to .1 .. .2 over ten updates: entropy .42 is below it at first and above it in the end."""
    method = make("entrocraft", updates=10, entropy_of="last")
    assert feed(method, [0.42] * 10) == [-1, -1, -1, 0, 0, 1, 1, 1, 1, 1]
    assert method.status()["target"] == pytest.approx(0.15)
    with pytest.raises(ValueError, match="updates must be given with tau_end, got None"):
        make("entrocraft")
