import pytest

from aer_train import clock as module
from aer_train.clock import PARTS, Clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only the test moves."""
    time = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: time[0])
    return time


def test_parts_do_not_overlap_and_leave_nothing_out(now: list[float]) -> None:
    clock = Clock()
    now[0] += 1
    with clock.part("train"):
        now[0] += 2
        with clock.part("old_logprobs"):
            now[0] += 4
        now[0] += 8
    now[0] += 16
    with pytest.raises(OSError, match="full"), clock.part("checkpoint"):
        now[0] += 32
        raise OSError("full")
    now[0] += 64
    found = clock.lap()
    assert {name: value for name, value in found.items() if value} == {"other": 81, "train": 10, "old_logprobs": 4, "checkpoint": 32}
    assert tuple(found) == PARTS and sum(found.values()) == 127
    now[0] += 0.5
    assert clock.lap() == dict.fromkeys(PARTS, 0.0) | {"other": 0.5}
