"""aer-train compare: the difference between two evaluations of the same problems, by a paired bootstrap.

Both are resampled with the same problems, so what makes a problem hard for both cancels: the interval of the difference is narrower than
the two intervals suggest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from aer_train.evaluation.estimates import Estimate, shown_ks
from aer_train.evaluation.evaluate import measures, named, tier_places
from aer_train.evaluation.tables import Cells, markdown, measure_cells
from aer_train.monitor.console import Console, table
from aer_train.run.files import read_json, write_atomic
from aer_train.run.folder import read_evals
from aer_train.seeds import generator
from aer_train.types import Row

SAME = ("samples", "temperature", "top_p", "max_new_tokens", "reward")
"""What two evaluations must have in common."""

MOST = 10
"""Problems named, of those on which the evaluations differ most."""


def compare_files(a: Path, b: Path, out: Path) -> Row:
    """Compare two evaluations, print the table, write compare.json and compare.md, and return what compare.json holds.

    Args:
        a, b: folder of aer-train eval, run folder (its last evaluation), or JSON file of either.
        out: folder for the comparison.
    Raises:
        ValueError - one is no evaluation, or they have not the same problems and sampling.
    """
    result = {"a": str(a), "b": str(b), **compare(read_result(a), read_result(b))}
    console = Console()
    console.rich.print(table("second minus first", *_difference_cells(result, [result["samples"]])))
    differing = _problem_cells(result)
    if differing[1]:
        console.rich.print(table("problems that differ most", *differing))
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "compare.json", json.dumps(result, indent=2))
    title = f"# {b} compared with {a}\n"
    sections = [
        title,
        markdown("second minus first", _difference_cells(result, shown_ks(result["samples"]))),
        markdown("problems that differ most", differing),
    ]
    write_atomic(out / "compare.md", "\n".join(sections))
    console.message(f"written to {out}: compare.json, compare.md")
    return result


def compare(a: Row, b: Row) -> Row:
    """Return the numbers of `a` and `b` and of their difference b - a, by tier, and the problems by how much they differ.

    Raises:
        ValueError - the problems or the sampling are not the same.
    """
    for name in SAME:
        if a[name] != b[name]:
            raise ValueError(f"both evaluations must have the same {name}, got {a[name]} and {b[name]}")
    first, second = _paired(a["problems"], b["problems"])
    n = a["samples"]
    numbers = {"a": measures(first, n), "b": measures(second, n)}
    width = min(values.shape[1] for values in numbers.values())  # without majority@k where one of them has none
    numbers = {name: values[:, :width] for name, values in numbers.items()}
    numbers["difference"] = numbers["b"] - numbers["a"]
    places = tier_places(first)
    estimates = {
        tier: {name: Estimate.of(values[members], generator(a["seed"], "bootstrap", tier)) for name, values in numbers.items()}
        for tier, members in places.items()
    }
    if len(places) > 1:
        tiers = [found for tier, found in estimates.items() if tier != "all"]
        estimates["mean"] = {name: Estimate.mean([found[name] for found in tiers]) for name in numbers}
    problems = [
        {"tier": p["tier"], "id": p["id"], "answer": p["answer"], "a": p["correct"], "b": q["correct"]}
        for p, q in zip(first, second, strict=True)
    ]
    return {
        **{name: a[name] for name in SAME},
        "tiers": {tier: {name: named(estimate, n) for name, estimate in found.items()} for tier, found in estimates.items()},
        "problems": sorted(problems, key=lambda row: -abs(row["a"] - row["b"])),
    }


def read_result(path: Path) -> Row:
    """Return an evaluation.

    Raises:
        ValueError - there is none, it is not JSON, or it was made before evaluations kept their tallies.
    """
    if path.is_file():
        result = read_json(path)
    elif (path / "eval.json").is_file():
        result = read_json(path / "eval.json")
    elif evals := read_evals(path):
        result = evals[max(evals)]
    else:
        raise ValueError(f"an evaluation must be a folder of aer-train eval, a run with evaluations, or a JSON file of either, got {path}")
    if isinstance(result, dict):
        result.setdefault("top_p", 1.0)  # older evaluations drew from all tokens
    if not isinstance(result, dict) or any(name not in result for name in ("problems", "seed", *SAME)):
        raise ValueError(f"{path} must hold an evaluation with its problems, got one without (evaluate again)")
    return result


def _paired(a: list[Row], b: list[Row]) -> tuple[list[Row], list[Row]]:
    """Both in the same order."""
    keys = [[_key(row) for row in rows] for rows in (a, b)]
    if sorted(keys[0]) != sorted(keys[1]):
        shared = len(set(keys[0]) & set(keys[1]))
        raise ValueError(f"both evaluations must be of the same problems, got {len(a)} and {len(b)}, {shared} of them in both")
    return (a, b) if keys[0] == keys[1] else (sorted(a, key=_key), sorted(b, key=_key))


def _key(tally: Row) -> tuple[str, ...]:
    return tally["tier"], tally["id"], tally["answer"]


def _difference_cells(result: Row, ks: Sequence[int]) -> Cells:
    def rows(name: str, value: Callable[[float], str] = "{:.3f}".format) -> list[list[str]]:
        return measure_cells({tier: numbers[name] for tier, numbers in result["tiers"].items()}, result["samples"], ks, value)[1]

    found = zip(rows("a"), rows("b"), rows("difference", "{:+.3f}".format), strict=True)
    cells = [[tier, measure, first[2], second[2], difference, ends] for first, second, (tier, measure, difference, ends) in found]
    return ["tier", "measure", "first", "second", "difference", "95 %"], cells


def _problem_cells(result: Row) -> Cells:
    n = result["samples"]
    shown = [row for row in result["problems"][:MOST] if row["a"] != row["b"]]
    rows = [[row["id"], row["answer"], f"{row['a']} of {n}", f"{row['b']} of {n}"] for row in shown]
    return ["problem", "answer", "first correct", "second correct"], rows
