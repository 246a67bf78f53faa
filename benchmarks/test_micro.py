"""Micro level, with pytest-benchmark: `pytest benchmarks --benchmark-only`."""

import pytest
import torch

from benchmarks.providers import prepare
from benchmarks.providers.eager import EAGER
from benchmarks.providers.gemms import GEMMS
from benchmarks.providers.ours import OURS
from benchmarks.workloads import KINDS, Workload, make_case

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE = (4096, 32_000, 1024, torch.bfloat16) if DEVICE.type == "cuda" else (256, 8000, 128, torch.float32)


@pytest.mark.parametrize("provider", [OURS, EAGER, GEMMS], ids=lambda p: p.name)
@pytest.mark.parametrize("kind", KINDS)
def test_micro(benchmark, kind, provider):
    if provider is GEMMS and kind == "from_logits":
        pytest.skip("there is no product")
    run = prepare(provider, make_case(Workload(kind, *SHAPE), DEVICE))
    benchmark.group = kind

    def once():
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(once, rounds=5, warmup_rounds=1)
