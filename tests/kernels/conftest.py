"""Uninitialised memory is poisoned with NaN in every kernel test, so that a read of what was never written is seen."""

from collections.abc import Iterator

import pytest
import torch


def _poisoned(make):
    def call(*args, **kwargs):
        out = make(*args, **kwargs)
        return out.fill_(torch.nan) if out.is_floating_point() and not out.is_meta else out

    return call


@pytest.fixture(autouse=True)
def nan_poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))
    torch.manual_seed(0)
    yield
