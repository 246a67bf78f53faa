"""The charts of a report: one function a chart, drawn from the records of one or several runs."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aer_train.record import Row, read_config, read_evals, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; its yellow is left out, being faint on white."""

TARGET_BAND = 0.2
"""Half-width of the band around the entropy target, relative."""

PHASES = {
    "rollout": "#0072B2",
    "verify_wait": "#E69F00",
    "exchange": "#882255",
    "old_logprobs": "#56B4E9",
    "train": "#009E73",
    "sync": "#F0E442",
    "eval": "#CC79A7",
    "checkpoint": "#D55E00",
    "record": "#000000",
    "other": "#999999",
}
COLUMNS = 4
"""Panels in a row of a chart."""


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
        """Return (steps, values) of a metric, without the steps that lack it."""
        rows = [row for row in self.rows if row.get(name) is not None]
        return [row["step"] for row in rows], [float(row[name]) for row in rows]


def charts(runs: Sequence[Run]) -> dict[str, Figure]:
    """Return every chart that the records allow, by name.

    Raises:
        ImportError - matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('a report needs: pip install "aer-rl[report]"') from error
    figures = {name: Figure(layout="constrained", facecolor="white") for name in CHARTS}
    return {name: figures[name] for name, draw in CHARTS.items() if draw(figures[name], runs)}


def reward(figure: Figure, runs: Sequence[Run]) -> bool:
    """Training reward: the mean, and each tier."""
    tiers = sorted({name for run in runs for row in run.rows for name in row if name.startswith("reward/tier/")})
    names = {"reward/mean": "training reward", **{name: f"training reward, {name.rsplit('/', 1)[1]}" for name in tiers}}
    return _lines(figure, runs, {name: (title, "mean reward") for name, title in names.items()})


def entropy(figure: Figure, runs: Sequence[Run]) -> bool:
    """Token entropy, with the target and its band."""
    if not _lines(figure, runs, {"entropy/mean": ("token entropy of the policy", "entropy (nats per token)")}):
        return False
    axes = figure.axes[0]
    for color, run in _colored(runs):
        steps, target = run.series("entropy/target")
        if steps:
            axes.plot(steps, target, color=color, linestyle="--", linewidth=1.2, label=f"{run.label}: target, band ±{TARGET_BAND:.0%}")
            low, high = ([value * (1 + sign * TARGET_BAND) for value in target] for sign in (-1, 1))
            axes.fill_between(steps, low, high, color=color, alpha=0.1, linewidth=0)
    _from_zero(axes)
    return _finish(figure)


def coefficient(figure: Figure, runs: Sequence[Run]) -> bool:
    """Entropy coefficient, with the steps at which it was at its bound."""
    if not _lines(figure, runs, {"entropy/coef": ("entropy coefficient", "coefficient alpha")}, window=1):
        return False
    axes = figure.axes[0]
    for color, run in _colored(runs):
        rows = [row for row in run.rows if row.get("entropy/saturated") and row.get("entropy/coef") is not None]
        if rows:
            steps, values = [row["step"] for row in rows], [row["entropy/coef"] for row in rows]
            axes.plot(steps, values, "x", color=color, markersize=5, label=f"{run.label}: at its upper bound ({len(rows)} steps)")
    return _finish(figure)


def accuracy(figure: Figure, runs: Sequence[Run]) -> bool:
    """Held-out accuracy by tier, where it was measured more than once."""
    for axes, tier in _panels(figure, _tiers([run for run in runs if len(run.evals) > 1])):
        for color, run in _colored(runs):
            found = {step: result["tiers"][tier]["accuracy"] for step, result in run.evals.items() if tier in result["tiers"]}
            axes.plot(list(found), list(found.values()), "o-", color=color, markersize=4, label=run.label)
        _label(axes, f"held-out accuracy, {tier}", "step", "accuracy (mean of the samples)")
        _from_zero(axes)
    return _finish(figure)


def pass_at_k(figure: Figure, runs: Sequence[Run]) -> bool:
    """Held-out pass@k by tier, at the first and at the last evaluation, this with its 95 % interval; a start that all runs share is drawn
    once."""
    for axes, tier in _panels(figure, _tiers(runs)):
        curves = [[(step, _shares(run, step, tier)) for step in run.evals if _shares(run, step, tier)] for run in runs]
        starts = [found[0] for found in curves if len(found) > 1]
        shared = len(starts) > 1 and all(start == starts[0] for start in starts)
        if shared:
            _curve(axes, starts[0][1], ":", "#777777", f"all runs, step {starts[0][0]}")
        for (color, run), found in zip(_colored(runs), curves, strict=True):
            if len(found) > 1 and not shared:
                _curve(axes, found[0][1], ":", color, f"{run.label}, step {found[0][0]}")
            if found:
                step, shares = found[-1]
                _curve(axes, shares, "-", color, f"{run.label}, step {step}" if run.rows else run.label)
                ends = run.evals[step]["tiers"][tier].get("pass@k_interval", {})
                if ends:
                    low, high = ([ends[str(k)][side] for k in shares] for side in (0, 1))
                    axes.fill_between(list(shares), low, high, color=color, alpha=0.12, linewidth=0)
        ticks = _marked({k for found in curves for _, shares in found for k in shares})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.minorticks_off()
        _label(axes, f"held-out pass@k, {tier}", "k (samples a problem)", "share of problems solved")
        _from_zero(axes)
    return _finish(figure)


def grad_norm(figure: Figure, runs: Sequence[Run]) -> bool:
    """Gradient norm before clipping."""
    return _lines(figure, runs, {"optim/grad_norm": ("gradient norm before clipping", "gradient norm")})


def clipping(figure: Figure, runs: Sequence[Run]) -> bool:
    """Share of the loss tokens whose ratio was clipped."""
    return _lines(figure, runs, {"policy/clip_frac": ("clipped ratios", "share of loss tokens")})


def length(figure: Figure, runs: Sequence[Run]) -> bool:
    """Length of the responses, and how many were cut."""
    names = {"tokens/response_mean": ("response length", "mean tokens"), "tokens/truncated_frac": ("truncated responses", "share")}
    return _lines(figure, runs, names)


def time(figure: Figure, runs: Sequence[Run]) -> bool:
    """Where the time went."""
    totals = {run.label: {phase: sum(run.series(f"time/{phase}")[1]) for phase in PHASES} for run in runs}
    totals = {label: phases for label, phases in totals.items() if any(phases.values())}
    if not totals:
        return False
    figure.set_size_inches(7.5, 1.5 + 0.45 * len(totals))
    axes = figure.subplots()
    start = dict.fromkeys(totals, 0.0)
    shown = [phase for phase in PHASES if any(phases[phase] for phases in totals.values())]
    for phase in shown:
        widths = [phases[phase] for phases in totals.values()]
        axes.barh(list(totals), widths, left=list(start.values()), color=PHASES[phase], label=phase, height=0.6)
        start = {label: start[label] + phases[phase] for label, phases in totals.items()}
    axes.invert_yaxis()
    _label(axes, "time by phase, whole run", "seconds", "")
    axes.grid(axis="y", visible=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(shown), 5), frameon=False, fontsize=9)
    return True


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


CHARTS: dict[str, Callable[[Figure, Sequence[Run]], bool]] = {
    function.__name__: function for function in (reward, accuracy, pass_at_k, entropy, coefficient, grad_norm, clipping, length, time)
}
"""Each draws into an empty figure, and returns whether the records held anything to draw."""


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Return the trailing mean over up to `window` >= 1 values."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def _lines(figure: Figure, runs: Sequence[Run], names: dict[str, tuple[str, str]], window: int | None = None) -> bool:
    """One panel for each metric that some run has: the values faint, their trailing mean over `window` steps strong."""
    for axes, name in _panels(figure, [name for name in names if any(run.series(name)[0] for run in runs)]):
        title, unit = names[name]
        span = window or max(1, max(len(run.series(name)[1]) for run in runs) // 28)
        for color, run in _colored(runs):
            steps, values = run.series(name)
            if span > 1:
                axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
            axes.plot(steps, smooth(values, span), color=color, linewidth=1.8, label=run.label)
        _label(axes, title, "step" if span == 1 else f"step (strong line: mean of {span})", unit)
        _from_zero(axes)
    return _finish(figure)


def _panels(figure: Figure, names: Sequence[str]) -> list[tuple[Axes, str]]:
    if not names:
        return []
    columns = min(len(names), COLUMNS)
    rows = math.ceil(len(names) / columns)
    figure.set_size_inches({1: 7.5, 2: 9.0}.get(columns, 3.7 * columns), 3.3 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(names) :]:
        axes.remove()
    return list(zip(grid, names, strict=False))


def _finish(figure: Figure) -> bool:
    """Draw one legend for all panels below them (anew, when there is one already); False when there is no panel."""
    for legend in list(figure.legends):
        legend.remove()
    entries = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if entries:
        longest = 45 + 5.2 * max(map(len, entries))  # points: the handle, and a character of the 9 pt font
        columns = max(1, min(len(entries), 4, int(72 * figure.get_figwidth() / longest)))
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return bool(figure.axes)


def _from_zero(axes: Axes) -> None:
    """Let the scale begin at 0, with room for a line at 0 and at the top; every quantity drawn is at least 0."""
    top = max(axes.dataLim.y1, 0.0) or 1.0
    axes.set_ylim(-0.03 * top, 1.06 * top)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _colored(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    return [(COLORS[i % len(COLORS)], run) for i, run in enumerate(runs)]


def _tiers(runs: Sequence[Run]) -> list[str]:
    """Tiers of the evaluations, "all" last."""
    names = dict.fromkeys(tier for run in runs for result in run.evals.values() for tier in result["tiers"])
    return sorted(names, key=lambda tier: tier == "all")


def _shares(run: Run, step: int, tier: str) -> dict[int, float]:
    """pass@k of an evaluation by k; empty when it lacks the tier."""
    return {int(k): share for k, share in run.evals[step]["tiers"].get(tier, {"pass@k": {}})["pass@k"].items()}


def _curve(axes: Axes, shares: dict[int, float], style: str, color: str, label: str) -> None:
    """A curve over k, with markers at some k."""
    ks = list(shares)
    marks = [ks.index(k) for k in _marked(shares)]
    axes.plot(ks, list(shares.values()), f"o{style}", color=color, markersize=4, markevery=marks, label=label)


def _marked(ks: Collection[int]) -> list[int]:
    """Powers of two, and the largest."""
    return [k for k in sorted(ks) if k == max(ks) or k.bit_count() == 1]
