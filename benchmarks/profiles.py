"""The workloads of each profile."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.workloads import EARLY, KINDS, Workload

CORE = ("aer_kernels", "eager", "bare products")


def cpu() -> list[Workload]:
    """A few minutes on two cores: the target shape in full, the other kinds and the sweeps smaller."""
    f32 = torch.float32
    main = [Workload("policy", 4096, 32_000, 512, f32, rounds=3)]
    main += [Workload(k, 512, 32_000, 512, f32, rounds=3) for k in KINDS if k not in ("policy", "from_logits")]
    main += [Workload("policy", 512, 32_000, 512, f32, peak=EARLY, rounds=3), Workload("from_logits", 512, 32_000, 64, f32)]
    main += [Workload(k, 512, 32_000, 512, torch.bfloat16, rounds=3) for k in ("policy", "logprobs")]
    sweeps = _sweeps(f32, tokens=(256, 512, 1024, 2048), vocab=(8000, 32_000, 128_000), hidden=256, lengths=(8192, 32_768, 131_072))
    return main + list(sweeps)


def _sweeps(dtype: torch.dtype, tokens: tuple, vocab: tuple, hidden: int, lengths: tuple) -> Iterator[Workload]:
    for n in tokens:
        yield Workload("policy", n, 32_000, hidden, dtype, sweep="tokens", rounds=3, only=CORE)
    for v in vocab:
        yield Workload("policy", 512, v, hidden, dtype, sweep="vocabulary", rounds=3, only=CORE)
    for share in (1.0, 0.75, 0.5, 0.25):
        yield Workload("policy", 1024, 32_000, hidden, dtype, sweep="useful share", share=share, rounds=3, only=CORE)
    for n in lengths:
        yield Workload("policy", n, 2048, 32, dtype, sweep="sequence length", rounds=3, only=CORE)


def gpu() -> list[Workload]:
    """At most eight minutes on an H200 or H100: Qwen-sized heads in bf16."""
    bf16, v, slow = torch.bfloat16, 151_936, ("torch.compile", "aer_kernels (impl=torch)")
    main = [Workload(k, 8192, v, 4096, bf16, rounds=10, without=() if k == "policy" else slow) for k in KINDS if k != "from_logits"]
    narrow = ("policy", "policy_half", "policy_no_entropy", "logprobs", "score")
    main += [Workload(k, 8192, v, 2048, bf16, rounds=10, without=slow) for k in narrow]
    main += [Workload(k, 16_384, v, 4096, bf16, rounds=5, without=slow) for k in ("policy", "logprobs")]
    main += [Workload("policy", 8192, v, 4096, bf16, peak=EARLY, rounds=5, without=slow), Workload("from_logits", 8192, v, 64, bf16)]
    sweeps = [Workload("policy", n, v, 2048, bf16, sweep="tokens", rounds=5, only=CORE) for n in (1024, 2048, 4096, 8192, 16_384)]
    sweeps += [Workload("policy", 8192, w, 2048, bf16, sweep="vocabulary", rounds=5, only=CORE) for w in (32_000, 128_256, v, 262_144)]
    sweeps += [Workload("policy", 8192, v, 2048, bf16, sweep="useful share", share=s, rounds=5, only=CORE) for s in (1.0, 0.75, 0.5, 0.25)]
    sweeps += [Workload("policy", n, v, 2048, bf16, sweep="sequence length", rounds=3, only=CORE) for n in (32_768, 65_536, 131_072)]
    return main + sweeps


def smoke() -> list[Workload]:
    """Seconds: does it run."""
    f32 = torch.float32
    sweeps = [Workload("policy", n, 1000, 32, f32, sweep="tokens", rounds=2, only=CORE) for n in (64, 128)]
    return [Workload(k, 128, 1000, 32, f32, rounds=2) for k in KINDS] + sweeps


MINUTES = {"cpu": 60.0, "gpu": 7.0, "smoke": 60.0}
"""After this time no further workload is started: what matters most comes first."""

PROFILES = {"cpu": cpu, "gpu": gpu, "smoke": smoke}
