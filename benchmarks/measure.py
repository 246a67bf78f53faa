"""Time and memory of one piece of work."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from benchmarks.providers import Provider, Unavailable, prepare
from benchmarks.workloads import Case

MIB = 2**20


class Timing(NamedTuple):
    """Milliseconds over the rounds."""

    median_ms: float
    p20_ms: float
    p80_ms: float


def time_in_turn(runs: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Every run once a round, in turn, so that drift of the machine meets all of them; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    gc.freeze()  # so that a collection between two runs looks at what runs left behind, not at every module of every peer
    for _ in range(rounds + 1):
        for name, run in runs.items():
            gc.collect()
            found[name].append(_once(run, device))
    gc.unfreeze()
    return {name: summary(times[1:]) for name, times in found.items()}


def _once(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)
    begin = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begin)


def summary(times: list[float]) -> Timing:
    """Median and the band from the 20th to the 80th percentile."""
    if len(times) < 3:
        return Timing(statistics.median(times), min(times), max(times))
    quantiles = statistics.quantiles(times, n=5, method="inclusive")
    return Timing(statistics.median(times), quantiles[0], quantiles[3])


def peak_mib(provider: Provider, case: Case) -> float:
    """Most memory that is live at once beyond the inputs, gradients included."""
    run = prepare(provider, case)
    if case.hidden.device.type == "cuda":
        run()  # compiles, tunes, makes the products' own workspace
        clear(case)
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    with _quiet(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak / MIB


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the profiler's own lines, which go past Python straight to the terminal and through the progress bar."""
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


def clear(case: Case) -> None:
    """Drop the gradients of the last run."""
    for leaf in case.leaves.values():
        leaf.grad = None


def outputs_mib(case: Case) -> float:
    """Gradients that the work must leave behind."""
    return sum(leaf.numel() * leaf.element_size() for leaf in case.leaves.values()) / MIB


def fits(case_bytes: float, device: torch.device) -> bool:
    """Whether so much memory is free."""
    if device.type == "cuda":
        return case_bytes < 0.9 * torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo") as lines:
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return case_bytes < 0.7 * free


def check_memory(provider: Provider, case: Case) -> None:
    """Refuse full logits that do not fit, before they are tried."""
    w = case.workload
    if provider.name in ("eager", "torch.compile"):
        needed = w.num_tokens * w.vocab_size * (w.dtype.itemsize + 4 * 4.0)
        if not fits(needed, case.hidden.device):
            raise Unavailable(f"would need about {needed / 2**30:.0f} GiB")
