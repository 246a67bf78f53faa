"""The seam, and the methods behind it, on tokens written by hand and at random."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch

from aer_kernels import AdaptiveEntropyController, EntropyControlConfig
from aer_kernels.methods import (
    AER,
    METHODS,
    ForkingTokens,
    ForkingTokensConfig,
    Measured,
    PositiveAdvantage,
    PositiveAdvantageConfig,
    TokenTerms,
    check_method,
    make_method,
    method_class,
)
from aer_kernels.methods.seam import OF_TOKENS, moves, needs_logprobs, needs_pass, reported
from aer_kernels.methods.selection import draws, largest, largest_of, quantiles, ranks, spans
from tests.kernels.own_method import Own, OwnConfig
from tests.kernels.token_batches import batch, full, permuted


def test_sums_and_means_by_hand():
    tokens = batch()
    values = torch.arange(10.0)
    assert tokens.prompt_of_token.tolist() == [0] * 4 + [1] * 6
    assert tokens.per_response(values).tolist() == [3.0, 3.0, 9.0, 0.0, 30.0]
    assert tokens.per_prompt(tokens.per_response(values)).tolist() == [3.0, 19.5], "a response without tokens does not count"
    empty = batch(((0, 0), (1,)))
    assert empty.per_prompt(empty.per_response(torch.ones(1))).tolist() == [0.0, 1.0]
    nothing = batch(((0, 0),))
    assert nothing.per_prompt(nothing.per_response(torch.ones(0))).tolist() == [0.0]


def test_the_mean_of_equal_groups_is_torchs_to_the_bit():
    tokens = batch(((2,) * 7,) * 5)
    values = torch.randn(35)
    assert torch.equal(tokens.per_prompt(values), values.view(5, 7).mean(1))


def test_shapes_are_checked():
    tokens = batch()
    with pytest.raises(ValueError, match=r"advantages must have shape \(10,\) like logprobs, got \(3,\)"):
        replace(tokens, advantages=torch.ones(3))


def test_what_terms_move():
    assert TokenTerms().moved() == frozenset()
    assert TokenTerms(weight=torch.ones(1), clip_high=0.3, held=torch.ones(1), entropy_scale=2.0).moved() == {"weight", "clip_high"}


def test_terms_are_checked():
    tokens = batch()
    ones = torch.ones(10)
    TokenTerms(ones, -ones, -ones, 1.0, ones, 0.1, 0.2, ones).check(tokens)
    for terms, match in (
        (TokenTerms(weight=torch.ones(3)), r"weight must have shape \(10,\), got \(3,\)"),
        (TokenTerms(weight=-ones), "weight must be >= 0, got -1.0"),
        (TokenTerms(shift=ones / 0), "shift must be finite, got NaN or infinity"),
        (TokenTerms(divergence_coef=-ones), "divergence_coef must be >= 0, got -1.0"),
        (TokenTerms(held=-ones), "held must be >= 0, got -1.0"),
        (TokenTerms(clip_high=-0.1), "clip_high must be >= 0, got -0.1"),
        (TokenTerms(entropy_scale=math.nan), "entropy_scale must be finite, got nan"),
    ):
        with pytest.raises(ValueError, match=match):
            terms.check(tokens)
    with pytest.raises(TypeError, match=r"weight must be a torch.Tensor with one number a token, or None, got float"):
        TokenTerms(weight=1.0).check(tokens)


CONFIGS = {
    "aer": EntropyControlConfig(rho=0.5, least_weight=0.2),
    "surplus": EntropyControlConfig(surplus=0.5, quantity="response", target=3.0),
    "surplus of tokens": EntropyControlConfig(surplus=0.5, target=1.0, difficulty="uniform"),
    "difficult": EntropyControlConfig(held="difficult", quantity="response"),
    "fixed": EntropyControlConfig(kind="fixed", coef=0.03),
    "off": EntropyControlConfig(kind="off"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_aer_is_the_controller(name):
    """Coefficients by prompt, and the updates, are those of `AdaptiveEntropyController` with the entropies of the samples."""
    config, tokens = CONFIGS[name], batch()
    method, controller = AER(config), AdaptiveEntropyController(config)
    surprisal = tokens.per_response(-tokens.logprobs.double())
    by_response = torch.tensor([surprisal[:2].mean(), surprisal[[2, 4]].mean()]).float()
    mean_length = torch.tensor([2.0, 3.0])
    entropies = by_response if config.quantity == "response" else by_response / mean_length
    for entropy in (4.0, 3.5, 2.0):
        terms = method.terms(tokens)
        found = terms.entropy_scale * terms.entropy_coef
        torch.testing.assert_close(found, controller.coefficients(tokens.accuracy, entropies)[tokens.prompt_of_token])
        assert torch.equal(terms.entropy_coef == 0, controller.weights(tokens.accuracy, entropies)[tokens.prompt_of_token] == 0)
        if config.held == "difficult":
            assert torch.equal(terms.held, controller.held(tokens.accuracy)[tokens.prompt_of_token])
        else:
            assert terms.held is None
        assert terms.moved() == {"entropy_coef"}
        method.update(Measured(entropy * 10, 10.0, 5.0, 0.5, (-1.0, 2.0)))
        controller.update(entropy * 10, 10.0 if config.quantity == "token" else 5.0, (-1.0, 2.0), 0.5)
        assert method.status()["coef"] == controller.alpha and method.status()["target"] == (controller.target if name != "off" else None)
    other = AER(config)
    other.load_state_dict(json.loads(json.dumps(method.state_dict())))
    assert other.state_dict() == method.state_dict() and other.terms(tokens).entropy_scale == method.terms(tokens).entropy_scale


def test_positive_advantage_by_hand():
    """Entropies .5, .4, .15, .3 with the target .2 and steps of .05: lambda .05, .1, .05, .1."""
    method, tokens = PositiveAdvantage(PositiveAdvantageConfig()), batch()
    tokens = replace(tokens, advantages=torch.tensor([1.0, 1.0, 1.0, -1.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0]))
    assert method.terms(tokens).weight.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    found = []
    for entropy in (0.5, 0.4, 0.15, 0.3):
        method.update(Measured(entropy * 10, 10.0, 5.0))
        found.append(method.status()["positive_weight"])
    assert found == pytest.approx([0.05, 0.1, 0.05, 0.1])
    assert method.terms(tokens).weight.tolist() == pytest.approx([0.1] * 3 + [1.0] * 3 + [0.1] * 4)
    method.update(Measured(0.0, 0.0, 0.0))
    assert method.status()["positive_weight"] == found[-1], "an update without tokens says nothing"
    again = PositiveAdvantage(PositiveAdvantageConfig())
    again.load_state_dict(json.loads(json.dumps(method.state_dict())))
    assert again.state_dict() == method.state_dict()
    for _ in range(30):
        again.update(Measured(5.0, 10.0, 5.0))
    assert again.status()["positive_weight"] == 1.0, "it stays in [0, 1]"


def test_forking_tokens_by_hand():
    tokens = replace(batch(), entropy=torch.tensor([0.1, 0.9, 0.2, 0.9, 0.3, 0.0, 0.8, 0.1, 0.7, 0.4]))
    weights = {
        share: ForkingTokens(ForkingTokensConfig(share=share)).terms(tokens).weight.nonzero().flatten().tolist()
        for share in (0.1, 0.4, 1.0)
    }
    assert weights == {0.1: [1, 3], 0.4: [1, 3, 6, 8], 1.0: list(range(10))}, "ties stay together"


def test_the_largest_do_not_depend_on_rounding():
    """One state seen four times, each with the rounding of another pass: all or none of them."""
    values = torch.tensor([1.0, 0.5 + 1e-7, 0.5, 0.5 - 1e-7, 0.5 + 2e-7, 0.1])
    assert largest(values, 1).tolist() == [True] + [False] * 5
    for count in (2, 3, 5):
        assert largest(values, count).tolist() == [True] * 5 + [False]
    assert largest(values, 99).all() and not largest(values, 0).any() and largest(values[:0], 3).numel() == 0


GIVEN = {"adapo": {"step": 0.1}, "arm": {"alpha": 0.5}, "entrocraft": {"updates": 9}, "epo": {"updates": 9}, "relax": {"modes": 2}}
"""Options without which a method is not made."""

PER_TOKEN = ("weight", "shift", "entropy_coef", "divergence_coef", "held")
KINDS = [*METHODS, "stare+fixed", "kl_cov+steer"]


def make(kind, **options):
    config = method_class(kind).Config(kind=kind, **GIVEN.get(kind, {}), **options)
    return make_method(config)


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_does_what_the_seam_says(kind):
    """Terms have one number a token, nothing is changed by asking for them, the state is plain and restores what follows."""
    method, tokens = make(kind), full()
    moved = moves(method)
    for step in range(3):
        before = json.dumps(method.state_dict())
        terms = method.terms(tokens)
        terms.check(tokens)
        assert terms.moved() == moved, "what it moves does not depend on the update, nor on the state"
        assert json.dumps(method.state_dict()) == before
        assert all(value is None or math.isfinite(value) for value in method.status().values())
        method.update(Measured(10.0 - step, 10.0, 5.0, 0.5, (-0.1, 0.2)))
    restored = make(kind)
    restored.load_state_dict(json.loads(json.dumps(method.state_dict())))
    found, expected = restored.terms(tokens), method.terms(tokens)
    assert found.moved() == expected.moved() and restored.state_dict() == method.state_dict()
    for name in expected.moved():
        assert torch.equal(torch.as_tensor(getattr(found, name)), torch.as_tensor(getattr(expected, name)))
    with pytest.raises(ValueError, match="state must"):
        restored.load_state_dict({"nonsense": 1})
    make(kind).terms(full(((0, 0),))).check(full(((0, 0),)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_permuting_responses_permutes_the_terms(kind, seed):
    """However ranks and micro-batches order the responses of an update, a token is worth the same."""
    tokens = full(((9, 1, 30), (12, 0, 4), (25, 2), (17, 17, 17, 8)), seed)
    other, of_token, of_response = permuted(tokens, seed)
    methods = [make(kind), make(kind)]
    for _ in range(2):
        terms, moved = (method.terms(part) for method, part in zip(methods, (tokens, other), strict=True))
        for name in PER_TOKEN:
            value, found = getattr(terms, name), getattr(moved, name)
            assert (value is None) == (found is None)
            if value is not None:
                torch.testing.assert_close(found, value[of_token], rtol=1e-5, atol=1e-6)
        if terms.statistic_coef is not None:
            torch.testing.assert_close(moved.statistic_coef, terms.statistic_coef[of_response], rtol=1e-5, atol=1e-6)
        assert moved.entropy_scale == pytest.approx(terms.entropy_scale) and moved.clip_high == terms.clip_high
        bonuses = [getattr(method, "reward_bonus", None) for method in methods]
        if bonuses[0] is not None:
            torch.testing.assert_close(bonuses[1](other), bonuses[0](tokens)[of_response])
        for method in methods:
            method.update(Measured(30.0, 100.0, 10.0, 0.5, (-0.1, 0.2)))


@pytest.mark.parametrize("kind", [kind for kind in METHODS if needs_pass(make(kind))])
def test_what_a_method_needs_is_asked_for_by_name(kind):
    method = make(kind)
    bare = replace(full(), **dict.fromkeys((*OF_TOKENS, "prompt_logprobs", "text", "statistic")))
    with pytest.raises(ValueError, match=r"\w+ must be given in the TokenBatch for this method, got None"):
        method.terms(bare)
        method.reward_bonus(bare)


def test_what_does_nothing_on_policy_is_refused():
    nothing = {kind for kind in METHODS if _refused(make(kind))}
    assert nothing == {"kl_cov", "mai_clip", "adapo", "erc"}
    with pytest.raises(
        ValueError, match=r"KLCov must have more than one update on each batch: .* its clip_high, clip_low, divergence_coef"
    ):
        check_method(make("kl_cov"), given=frozenset(), on_policy=True)
    check_method(make("kl_cov"), given=frozenset(), on_policy=False)
    with pytest.raises(ValueError, match="KLCov must have more than one update"):
        check_method(make("kl_cov+steer"), given=frozenset(), on_policy=True)
    with pytest.raises(ValueError, match="method must need what this trainer has, got ARM, which needs prompt_logprobs"):
        check_method(make("arm"), given=frozenset({"text"}), on_policy=False)


def _refused(method):
    try:
        check_method(
            method,
            given=frozenset({"prompt_logprobs", "text", "statistic", *OF_TOKENS}),
            on_policy=True,
        )
    except ValueError:
        return True
    return False


BLIND = [kind for kind in METHODS if kind not in CONFIGS and not needs_logprobs(make(kind))]


@pytest.mark.parametrize("kind", BLIND)
def test_a_method_that_says_so_does_not_look_at_log_probs(kind):
    """A trainer without log-probs puts NaN there."""
    tokens, method = full(), make(kind)
    blind = replace(tokens, logprobs=torch.full_like(tokens.logprobs, torch.nan))
    terms, found = method.terms(tokens), method.terms(blind)
    same = all(torch.equal(value, getattr(found, name)) for name, value in vars(terms).items() if isinstance(value, torch.Tensor))
    assert same and len(BLIND) > 10


def test_which_methods_need_a_pass():
    """The others decide from log-probs and advantages that are there already."""
    free = {kind for kind in METHODS if not needs_pass(make(kind))}
    assert free - set(CONFIGS) >= {"positive_advantage", "clip_cov", "kl_cov", "mai_clip", "repo_r", "adapo"}
    for kind in ("stare", "entropic", "entrocraft"):
        assert needs_pass(make(kind)) and not needs_pass(make(kind, entropy_of="last"))


def test_combined_methods():
    """Each part does what it does alone; two parts may not move one thing."""
    tokens, both = full(), make("stare+fixed")
    assert both.needs_entropy and moves(both) == {"weight", "entropy_coef"}
    config = method_class("stare+fixed").Config
    both = make_method(
        replace(config(), stare=method_class("stare").Config(target=5.0), fixed=EntropyControlConfig(kind="fixed", coef=0.3))
    )
    terms = both.terms(tokens)
    assert torch.equal(terms.weight, make("stare", target=5.0).terms(tokens).weight) and terms.weight.max() > 1
    assert terms.entropy_scale == 0.3 and terms.entropy_coef.min() >= 0
    both.update(Measured(20.0, 10.0, 5.0))
    status = both.status()
    assert status["target"] == 5.0 and status["coef"] == 0.3 and status["controlled"] == status["fixed_controlled"] == 2.0
    ares = make("ares+steer")
    assert torch.equal(ares.reward_bonus(tokens), make("ares").reward_bonus(tokens))
    for kind, match in (
        ("clip_cov+stare", "must combine methods that move different things, got clip_cov and stare, which move weight"),
        ("kl_cov+mai_clip", "got kl_cov and mai_clip, which move clip_high"),
        ("steer+steer", "kind must name each method once, got 'steer\\+steer'"),
        ("steer+nothing", "kind must be one of .* got 'nothing'"),
    ):
        with pytest.raises(ValueError, match=match):
            make(kind)
    config = method_class("aer+stare").Config
    with pytest.raises(ValueError, match="must not combine aer, which holds the entropy of some tokens, with stare, which holds all"):
        make_method(replace(config(), aer=EntropyControlConfig(held="difficult")))


def test_what_is_reported_is_what_was_applied():
    """Whatever a method calls what it moves: the number of the update that was made, beside what that update showed."""
    for kind, name in (("aer", "coef"), ("positive_advantage", "positive_weight")):
        method = make(kind, target=1.0)
        before = method.status()
        method.update(Measured(0.5 if kind == "aer" else 5.0, 1.0, 1.0))
        after = method.status()
        assert before[name] != after[name]
        assert reported(before, after) == after | {name: before[name], "saturated": before["saturated"]}


def test_ranks_and_quantiles_by_hand():
    tokens = batch()
    values = torch.tensor([3.0, 1.0, 2.0, 7.0, 5.0, 4.0, 0.0, 3.0, 1.0, 2.0])
    assert [part.tolist() for part in spans(tokens)] == [[0, 3, 4, 6, 6], [3, 1, 2, 0, 4]]
    assert ranks(tokens, values).tolist() == [2, 0, 1, 0, 1, 0, 0, 3, 1, 2]
    assert quantiles(tokens, values, 0.5).tolist() == [2.0, 7.0, 4.5, 0.0, 1.5]
    among = torch.tensor([True, True, False, False, True, False, False, True, True, True])
    assert quantiles(tokens, values, 0.5, among).tolist() == [2.0, 0.0, 5.0, 0.0, 2.0]
    assert quantiles(tokens, values, 1.0).tolist() == [3.0, 7.0, 5.0, 0.0, 3.0]


def test_draws_are_uniform_and_belong_to_their_token():
    tokens = batch(((400, 600),), seed=5)
    found = draws(tokens)
    assert found.min() >= 0 and found.max() < 1 and len(found.unique()) == 1000
    assert torch.histc(found, 10, 0, 1).min() > 70 and abs(float(found.mean()) - 0.5) < 0.03
    assert not torch.equal(found, draws(replace(tokens, seed=6)))
    part = replace(tokens, **{name: getattr(tokens, name)[400:] for name in ("logprobs", "advantages", "position", "entropy", "response")})
    assert torch.equal(draws(part), found[400:]), "whatever else is in the batch"
    named = replace(batch(((600, 400),), seed=5), ids=torch.tensor([1, 0]))
    assert torch.equal(draws(named)[:600], found[400:]), "by its id, not by its place"
    assert draws(replace(tokens, seed=2**63 - 1)).isfinite().all()
    assert largest_of(found, tokens.response == 1, 7, tie=0.0).sum() == 7


def test_a_method_of_ones_own():
    path = "tests.kernels.own_method.Own"
    assert method_class(path) is Own
    assert make_method(OwnConfig(path, 2.0)).terms(batch()).shift.tolist() == [2.0] * 10


@dataclass(frozen=True)
class NoKindConfig:
    amount: float = 1.0


class NoKind(Own):
    Config = NoKindConfig


def test_classes_and_configurations_that_are_no_methods():
    with pytest.raises(ValueError, match=r"kind must name a method whose Config is a dataclass with a field kind, got '.*NoKind'"):
        method_class("tests.kernels.test_methods.NoKind")
    with pytest.raises(ValueError, match="config must have a field kind, which names its method, got NoKindConfig"):
        make_method(NoKindConfig())


def test_bad_methods_and_options():
    for kind, match in (
        ("clip", r"kind must be one of aer, .* or a dotted path to a class, got 'clip'"),
        ("tests.nothing.Here", r"dotted path to a class, got 'tests.nothing.Here': No module named"),
        ("tests.kernels.own_method.OwnConfig", r"kind must name a method, got '.*OwnConfig' without Config, needs_entropy, terms"),
    ):
        with pytest.raises(ValueError, match=match):
            method_class(kind)
    with pytest.raises(ValueError, match="config must be a ForkingTokensConfig for kind 'forking_tokens', got PositiveAdvantageConfig"):
        make_method(PositiveAdvantageConfig(kind="forking_tokens"))
    for make, match in (
        (lambda: ForkingTokensConfig(share=0.0), r"share must be in \(0, 1\], got 0.0"),
        (lambda: PositiveAdvantageConfig(target=0.0), "target must be > 0 or None, got 0.0"),
        (lambda: PositiveAdvantageConfig(step=2.0), r"step must be in \[0, 1\], got 2.0"),
        (lambda: PositiveAdvantageConfig(start=-0.1), r"start must be in \[0, 1\], got -0.1"),
    ):
        with pytest.raises(ValueError, match=match):
            make()
