"""`python -m benchmarks.verify --out DIR`: the time a verdict takes beside math-verify, on the same responses."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from aer_train.verify import Verifier
from aer_train.verify.second import by_math_verify
from benchmarks import environment
from benchmarks.verify.pairs import KINDS, Pair, pairs

BLOCK = 25
"""Pairs that one side grades before the other does."""

OURS, THEIRS = "aer_train", "math-verify"


def main(arguments: list[str] | None = None) -> int:
    """Grade every pair with both, and write results.json and table.md."""
    options = _parse(arguments)
    chosen = list(pairs(options.each, options.seed))
    with Verifier(workers=1) as verifier:
        sides: dict[str, Callable[[Pair], bool]] = {
            OURS: lambda pair: verifier.score_many([(pair.response, pair.gold)])[0].reward == 1.0,
            THEIRS: lambda pair: by_math_verify(pair.response, pair.gold) == 1.0,
        }
        for side in sides.values():
            side(Pair("", r"\boxed{1+x}", "x+1", True))  # what a first call costs is imports and the start of a process
        measured = _measure(chosen, sides)
    here = environment.describe(torch.device("cpu"))
    here |= {"cores": os.cpu_count(), "load": os.getloadavg()[1], "math_verify": metadata.version("math-verify"), "seed": options.seed}
    rows = [here | row for kind in [*KINDS, "all"] for row in _rows(kind, measured)]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.out / "table.md").write_text(_table(rows, f"python -m benchmarks.verify --each {options.each} --seed {options.seed}"))
    print((options.out / "table.md").read_text())
    return 0


def _measure(chosen: Sequence[Pair], sides: dict[str, Callable[[Pair], bool]]) -> list[tuple[Pair, str, float, bool]]:
    """(pair, side, microseconds, whether the verdict is right); both get a block in turn, and the first changes from block to block."""
    found = []
    for number, first in enumerate(range(0, len(chosen), BLOCK)):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            for pair in chosen[first : first + BLOCK]:
                start = time.perf_counter()
                verdict = sides[name](pair)
                found.append((pair, name, 1e6 * (time.perf_counter() - start), verdict == pair.right))
    return found


def _rows(kind: str, measured: Sequence[tuple[Pair, str, float, bool]]) -> list[dict[str, Any]]:
    rows = []
    for side in (OURS, THEIRS):
        taken = [(microseconds, right) for pair, name, microseconds, right in measured if name == side and kind in (pair.kind, "all")]
        times = sorted(microseconds for microseconds, _ in taken)
        rows.append(
            {
                "kind": kind, "verifier": side, "pairs": len(taken), "right": sum(right for _, right in taken),
                "mean_us": statistics.fmean(times), "median_us": statistics.median(times),
                "p99_us": times[int(0.99 * len(times))], "max_us": times[-1],
            }
        )  # fmt: skip
    return rows


def _table(rows: Sequence[dict[str, Any]], command: str) -> str:
    first = rows[0]
    lines = [
        "# The verifier beside math-verify",
        "",
        f"{first['hardware']}, Python {first['python']}, math-verify {first['math_verify']}, commit {first['commit']},",
        f"{first['date']}. {first['cores']} cores, load average {first['load']:.1f}. `{command}`",
        "",
        "Microseconds a verdict, from the whole response to the outcome. Ours includes the way to its worker process and back;",
        "math-verify is called in this process, without its timeouts. Right: verdicts that are what the pair was made for.",
        "",
        "| answers | pairs | ours: median | mean | p99 | right | math-verify: median | mean | p99 | right | ratio of means |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        cells = [f"{side[key]:,.0f}" for side in (ours, theirs) for key in ("median_us", "mean_us", "p99_us", "right")]
        lines.append(f"| {ours['kind']} | {ours['pairs']} | {' | '.join(cells)} | {ours['mean_us'] / theirs['mean_us']:.2f} |")
    return "\n".join(lines) + "\n"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verify", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--each", type=int, default=400, help="pairs of every kind")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
