import pytest
import torch

from aer_train.step.advantage import group_accuracy, group_advantages, overlong_penalty

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("group_mean", [0.75, -0.25, -0.25, -0.25], [0.25, 0.25, 0.25, -0.75]),
        ("group_std", [0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001], [0.25 / 0.5001] * 3 + [-0.75 / 0.5001]),
        ("rloo", [1.0, -1 / 3, -1 / 3, -1 / 3], [1 / 3, 1 / 3, 1 / 3, -1.0]),
    ],
)
def test_by_hand(kind: str, first: list[float], second: list[float]) -> None:
    found = group_advantages(REWARDS, kind)
    assert found.dtype == torch.float32
    assert found[0].tolist() == pytest.approx(first, abs=1e-6)
    assert found[1].tolist() == pytest.approx(second, abs=1e-6)
    assert not found[2:].any()


@pytest.mark.parametrize("kind", ["group_mean", "group_std", "rloo"])
def test_equal_rewards_give_exactly_zero_whatever_the_rounding(kind: str) -> None:
    assert not group_advantages(torch.full((1, 7), 0.1), kind).any()


def test_noise_is_no_signal() -> None:
    rewards = torch.tensor([[0.3, 0.3 + 1e-7, 0.3], [0.3, 0.3001, 0.3]])
    noisy, exact = group_advantages(rewards, "group_std"), group_advantages(rewards, "group_std", tolerance=1e-6)
    assert noisy[0].any() and not exact[0].any()
    assert exact[1].any() and torch.equal(exact[1], noisy[1])


def test_overlong_penalty_by_hand() -> None:
    found = [overlong_penalty(length, max_new_tokens=20, buffer=4, penalty=0.5) for length in (1, 16, 17, 18, 20)]
    assert found == [0.0, 0.0, -0.125, -0.25, -0.5]
    assert overlong_penalty(20, 20, buffer=20, penalty=1.0) == -1.0 and overlong_penalty(20, 20, buffer=0, penalty=1.0) == 0.0


def test_accuracy() -> None:
    assert group_accuracy(REWARDS).tolist() == [0.25, 0.75, 0.0, 1.0]


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"rewards must have shape \(P, G\) with G >= 2, got \(3, 1\)"):
        group_advantages(torch.zeros(3, 1), "rloo")
    with pytest.raises(ValueError, match="advantage must be one of group_std, group_mean, rloo, got 'gae'"):
        group_advantages(torch.zeros(3, 2), "gae")
