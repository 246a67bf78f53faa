"""What a person reads of an evaluation or a comparison: the cells of its table, Markdown, and the curve of pass@k."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aer_train.evaluation.estimates import CURVES, shown_ks
from aer_train.types import Row

Cells = tuple[list[str], list[list[str]]]
"""Header and rows."""

NOTE = (
    "avg@n: share of correct responses. pass@k: chance that one of k responses is correct (unbiased, arXiv:2107.03374). majority@k: chance "
    "that the most frequent answer of k responses is correct, ties broken at random; responses without an answer do not vote. 95 %: "
    "bootstrap over problems (no width: all problems came out alike, which is no certainty). mean: of the tiers, each counting the same. "
    "cut: share of responses cut at the token limit."
)


def eval_title(result: Row) -> str:
    """Return what was evaluated how."""
    where = "evaluation" if result.get("step") is None else f"evaluation at step {result['step']}"
    top_p = f", top-p {result['top_p']:g}" if result.get("top_p", 1) < 1 else ""
    return f"{where}, {result['samples']} samples at T = {result['temperature']:g}{top_p}"


def eval_cells(result: Row) -> Cells:
    """Return a row for each tier: accuracy and its interval, pass@k for some k, majority@n, cut responses, tokens of a response.

    "mean" is the mean of the tiers, each counting the same.
    """
    n = result["samples"]
    found = result["tiers"] | ({"mean": result["mean"]} if "mean" in result else {})
    curves = [("pass@k", k) for k in shown_ks(n)[1:]] + [("majority@k", n)] * (n > 1)
    curves = [(curve, k) for curve, k in curves if all(curve in numbers for numbers in found.values())]
    named = [curve.replace("majority", "maj").replace("@k", f"@{k}") for curve, k in curves]
    header = ["tier", "problems", f"avg@{n}", "95 %", *named, "cut", "tokens"]
    rows = []
    for tier, numbers in found.items():
        shares = [f"{numbers[curve][str(k)]:.3f}" for curve, k in curves]
        facts = [f"{numbers['truncated_frac']:.3f}", f"{numbers['response_tokens']:,.0f}"] if "problems" in numbers else ["", ""]
        problems, accuracy = str(numbers.get("problems", "")), f"{numbers['accuracy']:.3f}"
        rows.append([tier, problems, accuracy, span(numbers["accuracy_interval"]), *shares, *facts])
    return header, rows


def measure_cells(found: Row, samples: int, ks: Sequence[int], value: Callable[[float], str] = "{:.3f}".format) -> Cells:
    """Return a row for each tier and measure (accuracy, and pass@k and majority@k for k > 1 of `ks`): its value and its interval."""
    rows = []
    for tier, numbers in found.items():
        names: list[tuple[str, str | None]] = [("accuracy", None)]
        names += [(curve, str(k)) for curve in CURVES if curve in numbers for k in ks if k > 1]
        for name, k in names:
            number, ends = (numbers[key] if k is None else numbers[key][k] for key in (name, f"{name}_interval"))
            label = f"avg@{samples}" if k is None else name.replace("@k", f"@{k}")
            rows.append([tier, label, value(number), span(ends, value)])
    return ["tier", "measure", "value", "95 %"], rows


def span(interval: Sequence[float], value: Callable[[float], str] = "{:.3f}".format) -> str:
    """Return an interval as text."""
    return f"{value(interval[0])}..{value(interval[1])}"


def markdown(title: str, cells: Cells) -> str:
    """Return a Markdown section with a table."""
    header, rows = cells
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---", *["---:"] * (len(header) - 1)], *rows)]
    return "\n".join([f"## {title}", "", *lines, ""])


def eval_markdown(result: Row) -> str:
    """Return an evaluation as Markdown: the table, every shown measure with its interval, outcomes, and where the problems are from."""
    found = result["tiers"] | ({"mean": result["mean"]} if "mean" in result else {})
    outcomes = sorted({name for numbers in result["tiers"].values() for name in numbers["outcomes"]})
    counts = [[tier, *(f"{numbers['outcomes'].get(name, 0):,}" for name in outcomes)] for tier, numbers in result["tiers"].items()]
    keys = ("source", "split", "revision", "problems", "digest")
    origins = [[origin["name"] or "data", *(str(origin[key] or "-") for key in keys)] for origin in result["data"]]
    return "\n".join(
        [
            f"# {result['model']}\n",
            markdown(eval_title(result), eval_cells(result)),
            f"{NOTE}\n",
            markdown("intervals", measure_cells(found, result["samples"], shown_ks(result["samples"]))),
            markdown("outcomes", (["tier", *outcomes], counts)),
            markdown("problems", (["set", *keys], origins)),
        ]
    )


def pass_at_k_png(result: Row, label: str) -> bytes:
    """Return the curve of pass@k with its intervals as a PNG image.

    Raises:
        ImportError - matplotlib is not installed.
    """
    from aer_train.report.charts import Run, pass_at_k
    from aer_train.report.plots import chart_figure, png

    return png(chart_figure(pass_at_k([Run(label, {}, [], {result.get("step") or 0: result})]), [label]))
