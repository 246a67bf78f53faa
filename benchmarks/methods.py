"""What a step costs with each method beside none: `python -m benchmarks.methods --help`.

All methods train in one process, a step each in turn, so that whatever else the machine does is shared. Seconds are CPU time of this
process on one thread. A row is the median over the steps after the first; sampling is left out, as it depends on what a policy has learned.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from aer_kernels import EntropyControlConfig
from aer_kernels.methods import METHODS, method_class
from aer_train import collect
from aer_train.config.checks import check_config
from aer_train.config.presets import PRESETS
from aer_train.config.tree import TrainConfig
from aer_train.model import load_policy
from aer_train.monitor.console import Console
from aer_train.run.folder import Recorder
from aer_train.trainer import Loop
from aer_train.verify.rewards import Rewards

REQUIRED: dict[str, dict[str, Any]] = {"arm": {"alpha": 1.0}, "adapo": {"step": 0.05}, "relax": {"modes": 4}}
"""Options without a default, and what short responses need."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table: CPU milliseconds of a step for each method, beside plain GRPO (off)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="countdown")
    parser.add_argument("--only", nargs="*", default=DEFAULT, help='kinds; one with options is "steer form=exact"')
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seconds = measure(options.only, options.steps, PRESETS[options.preset]())
    print(table(seconds))
    return 0


ENTROPY_CONTROL = frozenset(kind for kind, found in METHODS.items() if found.Config is EntropyControlConfig)
DEFAULT = ["off", "aer", *(kind for kind in METHODS if kind not in ENTROPY_CONTROL), "steer form=exact"]


def measure(kinds: Sequence[str], steps: int, config: TrainConfig) -> dict[str, list[float]]:
    """Return the CPU seconds of every step after the first, without sampling, by kind."""
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        loops = {kind: _start(_configured(config, kind, steps), stack) for kind in kinds}
        for step in range(steps):
            for kind, (loop, recorder) in loops.items():
                with _without_sampling() as taken:
                    loop.step(recorder)
                if step:
                    seconds[kind].append(taken[0])
    return seconds


def table(seconds: dict[str, list[float]]) -> str:
    """Return the medians as a Markdown table, each beside that of the first kind."""
    medians = {kind: 1e3 * statistics.median(values) for kind, values in seconds.items()}
    first = next(iter(medians.values()))
    rows = [f"| {kind} | {value:.0f} | {value / first:.2f} |" for kind, value in medians.items()]
    return "\n".join([f"| method.kind | ms a step | times {next(iter(medians))} |", "|---|---|---|", *rows])


def _configured(config: TrainConfig, row: str, steps: int) -> TrainConfig:
    kind, *options = row.split()
    given = dict(option.split("=", 1) for option in options)
    method = method_class(kind).Config(kind=kind, **REQUIRED.get(kind, {}), **given)
    found = replace(config, method=method, run=replace(config.run, steps=steps, threads=1), eval=replace(config.eval, data=None))
    check_config(found)
    return found


def _start(config: TrainConfig, stack: ExitStack) -> tuple[Loop, Recorder]:
    out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    verifier = stack.enter_context(Rewards(replace(config.reward, workers=1)))
    loop = Loop(config, load_policy(config.model, torch.device("cpu")), verifier, Console())
    stack.callback(loop.rollout.close)
    return loop, stack.enter_context(Recorder(out / "run", config))


@contextmanager
def _without_sampling() -> Iterator[list[float]]:
    """A list that gets the CPU seconds spent inside, but for those in which samples are drawn and verified."""
    real, sampled, taken = collect.sample_groups, [0.0], list[float]()

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return real(*args, **kwargs)
        finally:
            sampled[0] += time.process_time() - start

    start = time.process_time()
    with patch.object(collect, "sample_groups", timed):
        yield taken
    taken.append(time.process_time() - start - sampled[0])


if __name__ == "__main__":
    raise SystemExit(main())
