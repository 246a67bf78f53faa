"""What a report draws, as data: a chart is one or several panels, made from the records of one or several runs.

The page draws these in the browser and `aer_train.report.plots` as PNG files, so that both show the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from aer_train.clock import PARTS
from aer_train.evaluation.estimates import shown_ks
from aer_train.monitor.band import BAND, trailing_mean
from aer_train.monitor.options import Options
from aer_train.run.folder import read_config, read_evals, read_metrics
from aer_train.types import Row

FEW = 3
"""Up to this many runs, the values of single steps are drawn too; of more, only what is smoothed."""

POINTS = 1200
"""Of a longer curve the highest and the lowest value of each stretch are drawn."""


@dataclass(frozen=True)
class Run:
    """The records of one run."""

    label: str
    config: dict[str, Any]
    rows: list[Row]
    evals: dict[int, Row]

    @classmethod
    def read(cls, folder: Path, label: str | None = None) -> Run:
        """Return the records of a run folder, whose name is the label when none is given."""
        return cls(label or folder.resolve().name, read_config(folder), read_metrics(folder), read_evals(folder))

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Return (steps, values) of a metric, without the steps that lack it. Outcomes that did not occur at a step count as 0."""
        absent = 0.0 if name.startswith("outcome/") else None
        found = [(row["step"], row.get(name, absent if _has_outcomes(row) else None)) for row in self.rows]
        known = [(step, float(value)) for step, value in found if value is not None and math.isfinite(value)]
        return [step for step, _ in known], [value for _, value in known]


@dataclass(frozen=True)
class Series:
    """One curve of a panel."""

    run: int | None
    """Place of its run; None when it belongs to all."""
    style: Literal["line", "faint", "target", "marks", "points", "start"]
    """line: smoothed values. faint: those of single steps. target: what is aimed at, with its band. marks: crosses. points: line through
    measured points. start: the same, dotted, of the beginning."""
    x: Sequence[float]
    y: Sequence[float]
    note: str = ""
    """What it is, beside the run's name."""
    low: Sequence[float] = ()
    """Lower and upper ends of a shaded band, or nothing."""
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    unit: str
    series: list[Series]
    note: str = ""
    """How to read it."""
    x: str = "step"
    ticks: Sequence[int] = ()
    """Places of the ticks, and of the points, on a logarithmic x axis; empty is a linear one."""


@dataclass(frozen=True)
class Bars:
    """One stacked bar for each run."""

    title: str
    unit: str
    parts: dict[str, list[float]]
    """Of each part the values by run."""
    note: str = ""


Chart = Sequence[Panel | Bars]


def charts(runs: Sequence[Run]) -> dict[str, dict[str, Chart]]:
    """Return every chart that the records allow, by heading and name."""
    drawn = {heading: {make.__name__: make(runs) for make in makers} for heading, makers in SECTIONS.items()}
    found = {heading: {name: chart for name, chart in part.items() if chart} for heading, part in drawn.items()}
    return {heading: part for heading, part in found.items() if part}


def reward(runs: Sequence[Run]) -> Chart:
    """Training reward: the mean, and each tier."""
    tiers = _names(runs, "reward/tier/")
    return _lines(
        runs, {"reward/mean": ("training reward", "mean")} | {f"reward/tier/{t}": (f"training reward, {t}", "mean") for t in tiers}
    )


def functions(runs: Sequence[Run]) -> Chart:
    """With several reward functions: accuracy, what each function gave, and where one failed."""
    names = {"reward/accuracy": ("training accuracy", "mean of what reward.kind gave")}
    names |= {
        f"reward/function/{name}": (f"reward function {name}", "mean, before its weight") for name in _names(runs, "reward/function/")
    }
    failed = {f"reward/failed/{name}": (f"reward function {name} failed", "share of responses") for name in _names(runs, "reward/failed/")}
    return _lines(runs, names | {name: title for name, title in failed.items() if any(any(run.series(name)[1]) for run in runs)})


def accuracy(runs: Sequence[Run]) -> Chart:
    """Held-out accuracy by tier with its interval, where it was measured more than once."""
    panels = []
    for tier in _tiers([run for run in runs if len(run.evals) > 1]):
        series = []
        for place, run in enumerate(runs):
            found = {step: result["tiers"][tier] for step, result in run.evals.items() if tier in result["tiers"]}
            if found:
                values = [numbers["accuracy"] for numbers in found.values()]
                ends = [numbers.get("accuracy_interval") for numbers in found.values()]
                series.append(Series(place, "points", list(found), values, "", *_sides(ends)))
        panels.append(Panel(f"held-out accuracy, {tier}", "mean of the samples", series, _interval_note(series)))
    return panels


def pass_at_k(runs: Sequence[Run]) -> Chart:
    """Held-out pass@k by tier: the first evaluation, once where all runs share it, and the last one with its interval."""
    panels = []
    for tier in _tiers(runs):
        found = {
            place: steps for place, run in enumerate(runs) if (steps := [step for step in run.evals if tier in run.evals[step]["tiers"]])
        }
        series = [_pass_curve(runs, place, "start", steps[0], tier) for place, steps in found.items() if len(steps) > 1]
        if len(series) > 1 and len({(tuple(start.y), start.note) for start in series}) == 1:
            series = [replace(series[0], run=None)]
        series += [_pass_curve(runs, place, "points", steps[-1], tier) for place, steps in found.items()]
        dotted = "dotted: first evaluation" if any(curve.style == "start" for curve in series) else ""
        note = "; ".join(part for part in (dotted, _interval_note(series)) if part)
        ticks = shown_ks(max(int(curve.x[-1]) for curve in series))
        panels.append(Panel(f"held-out pass@k, {tier}", "share of problems", series, note, "k (samples a problem)", ticks))
    return panels


def entropy(runs: Sequence[Run]) -> Chart:
    """Entropy of a token and of a response; the one that a run holds has its target and the band around it. Where that is the entropy of
    some tokens alone it has a panel of its own."""
    names = {
        "entropy/mean": ("token", "token entropy", "nats per token"),
        "entropy/per_response": ("response", "entropy of a response", "nats, summed over its tokens"),
        "entropy/controlled": ("difficult", "entropy that is held: of difficult prompts where method.held says so, of peaks", "nats"),
    }
    held = [_held(run) for run in runs]
    panels = []
    for name, (quantity, title, unit) in names.items():
        holding = {place for place, found in enumerate(held) if found == quantity}
        if quantity == "difficult" and not holding:
            continue
        smoothed = {name: "entropy/smoothed"} if len(holding) == len(runs) else {}
        for panel in _lines(runs, {name: (title, unit)}, smoothed):
            panels.append(_with_targets(panel, _targets(runs, holding), len(runs)))
    return panels


def _held(run: Run) -> str:
    """Whose target it is: token, response or, where only some tokens count, difficult."""
    options = Options(run.config)
    moved = options.moved()
    if moved.kind in ("siren", "aent") or options.value(f"{moved.prefix}.held") == "difficult":
        return "difficult"
    return options.value(f"{moved.prefix}.quantity") or "token"


def entropy_by_tier(runs: Sequence[Run]) -> Chart:
    """Entropy of a response to the prompts of each tier: where does the bonus go?"""
    names = {f"entropy/tier/{tier}": (f"entropy of a response, {tier}", "nats, from the samples") for tier in _names(runs, "entropy/tier/")}
    return _lines(runs, names)


def _with_targets(panel: Panel, targets: list[Series], num_runs: int) -> Panel:
    if not targets:
        return panel
    of = " of the run pointed at in the legend" if num_runs > FEW and targets[0].run is not None else ""
    note = f"{panel.note}; dashed: target{of}, shaded: within ±{BAND:.0%} of it".removeprefix("; ")
    return replace(panel, series=[*targets, *panel.series], note=note)


def moved(runs: Sequence[Run]) -> Chart:
    """What the method moves, with the steps at which it was at its bound."""
    names = {"entropy/coef": ("entropy coefficient alpha", "")}
    names |= {f"method/{name}": (name.replace("_", " "), "") for name in _names(runs, "method/")}
    panels = _lines(runs, names, span=1)
    shown = {title: name for name, (title, _) in names.items()}
    return [_with_marks(panel, runs, shown[panel.title]) for panel in panels]


def _with_marks(panel: Panel, runs: Sequence[Run], name: str) -> Panel:
    marks = []
    for place, run in enumerate(runs):
        found = [(row["step"], row[name]) for row in run.rows if row.get("entropy/saturated") and row.get(name) is not None]
        if found and name == _moved_name(run):
            steps, values = map(list, zip(*found, strict=True))
            marks.append(Series(place, "marks", steps, values, "at its bound"))
    return replace(panel, series=[*panel.series, *marks], note="crosses: at its bound" if marks else "")


def _moved_name(run: Run) -> str:
    """The metric that a run's controller moves."""
    words = Options(run.config).moved().name
    return "entropy/coef" if words == "entropy coefficient" else f"method/{words.replace(' ', '_')}"


def entropy_forces(runs: Sequence[Run]) -> Chart:
    """What moves entropy: its predicted change, and the bonus's share of the gradient."""
    names = {
        "entropy/predicted_change": ("predicted entropy change", "first order, up to a positive factor"),
        "entropy/bonus_share": ("entropy bonus in the gradient", "share of its norm at the logits"),
        "optim/bonus_share": ("entropy bonus in the gradient of the parameters", "share of its norm"),
    }
    return _lines(runs, names)


def optimization(runs: Sequence[Run]) -> Chart:
    """Gradient norm, clipped ratios, divergence."""
    names = {
        "optim/grad_norm": ("gradient norm before clipping", "norm"),
        "policy/clip_frac": ("clipped ratios", "share of loss tokens"),
        "policy/approx_kl": ("divergence from the policy that sampled", "nats per token"),
        "policy/ratio_max": ("largest ratio", "ratio"),
    }
    return _lines(runs, names)


def mismatch(runs: Sequence[Run]) -> Chart:
    """How far the log-probs of trainer and rollout are apart."""
    return _lines(runs, {"rollout/mismatch_mean": ("rollout mismatch", "mean |difference| of log-probs, nats")})


def length(runs: Sequence[Run]) -> Chart:
    """Length of the responses, how many were cut, groups of equal rewards, and prompts that no sample solved."""
    names = {
        "tokens/response_mean": ("response length", "mean tokens"),
        "tokens/truncated_frac": ("truncated responses", "share"),
        "reward/zero_variance_frac": ("groups of equal rewards", "share"),
        "reward/unsolved_frac": ("prompts that no sample solved", "share"),
    }
    return _lines(runs, names)


def difficulty(runs: Sequence[Run]) -> Chart:
    """What is known of the pass rates of all prompts, and how large groups were."""
    names = {
        "difficulty/pass_rate": ("pass rate of the prompts seen", "mean"),
        "difficulty/seen_frac": ("prompts seen", "share of all"),
        "difficulty/solved_frac": ("prompts that count as solved", "share of all"),
        "difficulty/unsolved_frac": ("prompts that count as unsolved", "share of all"),
        "difficulty/skipped": ("solved prompts passed over", "prompts"),
    }
    varied = any(run.series("difficulty/group_max")[1] != run.series("difficulty/group_min")[1] for run in runs)
    sizes = {"difficulty/group_max": ("largest group", "responses"), "difficulty/group_min": ("smallest group", "responses")}
    return _lines(runs, names | (sizes if varied else {}))


def outcomes(runs: Sequence[Run]) -> Chart:
    """What the verifier found."""
    return _lines(
        runs, {f"outcome/{name}": (f"verifier: {name.replace('_', ' ')}", "share of responses") for name in _names(runs, "outcome/")}
    )


def time(runs: Sequence[Run]) -> Chart:
    """Where the time of a step goes."""
    seconds = {part: [sum(run.series(f"time/{part}")[1]) / len(run.rows) for run in runs] for part in PARTS}
    shown = {part.replace("_", " "): values for part, values in seconds.items() if any(values)}
    return [Bars("time of a step by part", "seconds, mean of the run", shown)] if shown else []


def speed(runs: Sequence[Run]) -> Chart:
    """Tokens a second, and the memory that they take."""
    names = {
        "perf/tokens_per_second": ("speed of a step", "trained tokens per second"),
        "perf/rollout_tokens_per_second": ("speed of sampling", "tokens per second"),
        "perf/train_tokens_per_second": ("speed of training", "tokens per second"),
        "memory/peak_mib": ("peak memory", "MiB"),
    }
    return _lines(runs, names)


SECTIONS: dict[str, tuple[Callable[[Sequence[Run]], Chart], ...]] = {
    "Learning": (reward, functions, accuracy, pass_at_k),
    "Entropy": (entropy, entropy_by_tier, moved, entropy_forces),
    "Optimization": (optimization, mismatch),
    "Prompts": (difficulty,),
    "Responses": (length, outcomes),
    "Time and memory": (time, speed),
}
"""What is drawn below each heading. Each chart has no panel when the records hold nothing for it."""


def _lines(runs: Sequence[Run], names: dict[str, tuple[str, str]], smoothed: dict[str, str] | None = None, span: int = 0) -> list[Panel]:
    """One panel for each metric that some run has.

    Args:
        names: title and unit by metric.
        smoothed: metrics that are recorded smoothed, too, and the name of that.
        span: steps of the trailing mean of the others; 0 goes by the number of steps.
    """
    panels = []
    for name, (title, unit) in names.items():
        found = {place: series for place, run in enumerate(runs) if (series := run.series(name))[0]}
        if not found:
            continue
        width = span or max(1, max(len(steps) for steps, _ in found.values()) // 28)
        note = f"strong line: mean of {width} steps" if width > 1 else ""
        curves: list[Series] = []
        for place, (steps, values) in found.items():
            strong = runs[place].series((smoothed or {}).get(name, ""))
            if strong[0]:
                note = "strong line: as smoothed for the controller"
            if len(runs) <= FEW and (width > 1 or strong[0]):
                curves.append(Series(place, "faint", *_thin(steps, values), "single step"))
            curves.append(Series(place, "line", *_thin(*(strong if strong[0] else (steps, trailing_mean(values, width))))))
        panels.append(Panel(title, unit, curves, note))
    return panels


def _targets(runs: Sequence[Run], places: Iterable[int]) -> list[Series]:
    """The target of each run at these places with its band; one that all of them share is drawn once."""
    found: dict[int | None, tuple[list[int], list[float]]]
    found = {place: series for place in places if (series := runs[place].series("entropy/target"))[0]}
    if len(found) > 1 and len({value for _, target in found.values() for value in target}) == 1:
        found = {None: max(found.values(), key=lambda series: series[0][-1])}
    targets = []
    for place, (steps, target) in found.items():
        low, high = ([value * (1 + sign * BAND) for value in target] for sign in (-1, 1))
        targets.append(Series(place, "target", steps, target, "target", low, high))
    return targets


def _pass_curve(runs: Sequence[Run], place: int, style: Literal["points", "start"], step: int, tier: str) -> Series:
    numbers = runs[place].evals[step]["tiers"][tier]
    shares = {int(k): share for k, share in numbers["pass@k"].items()}
    ends = [numbers.get("pass@k_interval", {}).get(str(k)) if style == "points" else None for k in shares]
    note = f"step {step}" if runs[place].rows else ""
    return Series(place, style, list(shares), list(shares.values()), note, *_sides(ends))


def _sides(intervals: Sequence[Sequence[float] | None]) -> tuple[list[float], list[float]]:
    """Lower and upper ends; nothing unless all are known."""
    known = [interval for interval in intervals if interval is not None]
    return ([low for low, _ in known], [high for _, high in known]) if len(known) == len(intervals) else ([], [])


def _interval_note(series: Sequence[Series]) -> str:
    return "shaded: 95 % interval" if any(curve.low for curve in series) else ""


def _thin(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most about POINTS points, with every peak."""
    stride = 2 * math.ceil(len(values) / POINTS)
    if stride <= 2:
        return list(steps), list(values)
    kept: list[int] = []
    for begin in range(0, len(values), stride):
        stretch = range(begin, min(begin + stride, len(values)))
        kept += sorted({min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)})
    return [steps[i] for i in kept], [values[i] for i in kept]


def _names(runs: Sequence[Run], prefix: str) -> list[str]:
    """What follows the prefix in the metrics of the runs, in the order of the records."""
    return list(dict.fromkeys(name.removeprefix(prefix) for run in runs for row in run.rows for name in row if name.startswith(prefix)))


def _has_outcomes(row: Row) -> bool:
    return any(name.startswith("outcome/") for name in row)


def _tiers(runs: Sequence[Run]) -> list[str]:
    """Tiers of the evaluations, "all" last."""
    names = dict.fromkeys(tier for run in runs for result in run.evals.values() for tier in result["tiers"])
    return sorted(names, key=lambda tier: tier == "all")
