"""pass@k, majority@k and the bootstrap, each against an enumeration or a closed form."""

from collections import Counter
from itertools import combinations
from math import comb, sqrt

import numpy as np
import pytest

from aer_train.evaluation import estimates
from aer_train.evaluation.estimates import Estimate, interval, majority_at_k, pass_at_k, shown_ks


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_response(samples):
    found = pass_at_k(samples, range(samples + 1))
    for correct in range(samples + 1):
        outcomes = [True] * correct + [False] * (samples - correct)
        for k in range(1, samples + 1):
            subsets = list(combinations(outcomes, k))
            assert found[correct, k - 1] == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def enumerated_majority(responses, k):
    """Mean over all subsets of size k of the accuracy of the most frequent answer; (answer, correct) each, answer None has no vote."""
    accuracy = {a: np.mean([right for b, right in responses if b == a]) for a, _ in responses if a is not None}
    total = 0.0
    for subset in combinations(responses, k):
        votes = Counter(a for a, _ in subset if a is not None)
        winners = [a for a, count in votes.items() if count == max(votes.values())]
        total += np.mean([accuracy[a] for a in winners]) if winners else 0.0
    return total / comb(len(responses), k)


@pytest.mark.parametrize(
    "responses",
    [
        [("x", 1)],
        [("x", 1), ("x", 1), ("y", 0), ("y", 0), ("z", 0), (None, 0)],
        [("x", 1), ("x", 1), ("x", 1), ("x", 1), ("y", 0), ("y", 0), ("y", 0), ("z", 0), ("z", 0), ("w", 0)],
        [("x", 1), ("y", 1), ("z", 0), ("w", 0), ("v", 0), (None, 0), (None, 0)],
        [("x", 1), ("x", 0), ("x", 1), ("y", 0), ("y", 0), ("y", 0), ("z", 1), ("z", 1), (None, 0)],
        [(None, 0), (None, 0)],
        [("y", 0), ("y", 0), ("z", 0)],
    ],
    ids=["one", "ties and silence", "three rivals", "two right answers", "answer judged in two ways", "nobody votes", "none right"],
)
def test_majority_at_k_is_the_mean_over_all_subsets(responses):
    answers = {a for a, _ in responses if a is not None}
    votes = [(sum(b == a for b, _ in responses), sum(right for b, right in responses if b == a)) for a in sorted(answers)]
    found = majority_at_k(len(responses), votes)
    assert found == pytest.approx([enumerated_majority(responses, k) for k in range(1, len(responses) + 1)], abs=1e-14)


def test_majority_at_k_of_random_votes():
    rng = np.random.default_rng(0)
    for _ in range(30):
        n = int(rng.integers(2, 9))
        answers = rng.integers(0, 4, n).tolist()
        responses = [(None, 0) if a == 3 else (a, int(a == 0)) for a in answers]
        counts = Counter(a for a, _ in responses if a is not None)
        found = majority_at_k(n, [(count, count * (a == 0)) for a, count in counts.items()])
        assert found == pytest.approx([enumerated_majority(responses, k) for k in range(1, n + 1)], abs=1e-14)


def test_majority_at_k_of_two_answers_is_a_hypergeometric_tail():
    """Of 300 responses, at an odd k: more than half of the draws are right."""
    n, right = 300, 140
    found = majority_at_k(n, [(right, right), (n - right, 0)])
    for k in (1, 31, 151, 299):
        ways = sum(comb(right, j) * comb(n - right, k - j) for j in range(k // 2 + 1, k + 1))
        assert found[k - 1] == pytest.approx(ways / comb(n, k), rel=1e-11)
    assert found[0] == pytest.approx(right / n) and found[1] == pytest.approx(right / n), "two responses agree, or tie"


def test_majority_at_k_holds_at_the_largest_n():
    found = majority_at_k(1024, [(600, 600), *[(1, 0)] * 24])
    assert np.isfinite(found).all() and found[0] == pytest.approx(600 / 1024) and found[-1] == pytest.approx(1.0)


def test_bootstrap_has_the_moments_of_resampling():
    """The mean of P values drawn with replacement has the sample's mean, and its variance (with divisor P) over P."""
    values = np.random.default_rng(1).random((23, 2)) * [1.0, 5.0]
    found = Estimate.of(values, np.random.default_rng(2))
    assert found.value == pytest.approx(values.mean(0)) and found.resampled.shape == (estimates.RESAMPLES, 2)
    spread = values.std(0) / sqrt(23)
    assert np.abs(found.resampled.mean(0) - values.mean(0)) == pytest.approx([0, 0], abs=4 * spread.max() / sqrt(estimates.RESAMPLES))
    assert found.resampled.std(0) == pytest.approx(spread, rel=0.03)
    assert np.array_equal(found.resampled, Estimate.of(values, np.random.default_rng(2)).resampled)


def test_bootstrap_in_blocks_is_the_same(monkeypatch):
    values = np.random.default_rng(1).random((7, 1))
    whole = Estimate.of(values, np.random.default_rng(2)).resampled
    monkeypatch.setattr(estimates, "BLOCK", 70)
    assert np.array_equal(whole, Estimate.of(values, np.random.default_rng(2)).resampled)


def test_intervals_cover(monkeypatch):
    """pass@1 and pass@4 of 40 problems of unequal difficulty, 8 samples each, 400 times: about 95 % of the intervals hold the truth."""
    monkeypatch.setattr(estimates, "RESAMPLES", 1000)
    rng = np.random.default_rng(3)
    truth = [0.5, 1 - np.mean([(1 - p) ** 4 for p in rng.beta(0.7, 0.7, 200_000)])]
    covered = np.zeros(2)
    for _ in range(400):
        correct = rng.binomial(8, rng.beta(0.7, 0.7, 40))
        values = pass_at_k(8, correct.tolist())[:, [0, 3]]
        low, high = interval(Estimate.of(values, rng).resampled)
        covered += (low <= truth) & (truth <= high)
    assert ((covered / 400 > 0.91) & (covered / 400 < 0.98)).all(), covered


def test_shown_ks():
    assert [shown_ks(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
