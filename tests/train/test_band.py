"""How well entropy was held, by hand-computed numbers."""

import pytest

from aer_train.monitor.band import SPAN, step_response, trailing_mean


def test_trailing_mean():
    assert trailing_mean([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    assert trailing_mean([1.0, 3.0], 1) == [1.0, 3.0] and trailing_mean([], 3) == []


def test_counted_from_the_first_step_in_the_band():
    """In targets: 2.5, then 1.0, then 1.4, each longer than the span."""
    curve = [2.5] * 10 + [1.0] * 10 + [1.4] * 10
    found = step_response(curve, [1.0] * 30)
    assert found.reached == 10 + SPAN  # one step before, the mean is (2.5 + 4) / 5 = 1.3
    assert (found.largest, found.smallest) == (pytest.approx(1.4), 1.0)
    assert found.in_band == pytest.approx((6 + 2) / 16)  # on the way up 1.08 and 1.16 are inside, 1.24 is not


def test_never_reached_and_a_target_that_moves():
    assert step_response([3.0, 3.0], [1.0, 1.0]).reached is None and step_response([3.0, 3.0], [1.0, 1.0]).in_band == 0.0
    assert step_response([1.0, 1.0], [2.0, 1.0]) == step_response([0.5, 0.5], [1.0, 0.5])
