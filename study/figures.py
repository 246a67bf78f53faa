"""The figures of the pages in docs, and of a folder of runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from study import forest, plots, rivals
from study import where as at
from study.control import has_target
from study.dots import save_dots
from study.measures import evaluated
from study.names import AER, ANNEALED, FIXED, HEATS, TOKENS
from study.places import TUNED, TUNED_FINELY, TUNINGS, tuned
from study.real.results import save_training
from study.records import Record
from study.tables import best_method
from study.verdicts import save_verdicts
from study.where import Runs, Where

PARTS = "aer_"
"""How the names of AER in other forms than AER-full begin."""

RIVALS = Where("every method beside AER", "methods")

BESIDE = ("grpo", "fixed03", "fixed10")
"""What AER is drawn beside."""

PANELS: dict[str, tuple[Where, dict[str, str]]] = {
    "verdicts": (
        at.TWELVE,
        {"grpo": "plain GRPO", "fixed03": "fixed .03", "fixed10": "fixed .1", "fixed30": "fixed .3", TUNED: "fixed, tuned", AER: "AER"},
    ),
    "again": (at.AGAIN, {"grpo": "plain GRPO"} | HEATS | {AER: "AER", TOKENS: "a target a token"}),
    "grid": (at.GRID, {"grpo": "plain GRPO"} | FIXED | {"annealed10": ANNEALED["annealed10"], TUNED_FINELY: "best of nine", AER: "AER"}),
    "vocabulary": (
        at.VOCABULARY,
        {
            "grpo": "plain GRPO",
            "fixed01": "fixed .01",
            "fixed03": "fixed .03",
            "fixed10": "fixed .1",
            "bang_bang_1": "bang-bang",
            AER: "AER",
        }
        | {TOKENS: "a target a token"},
    ),
}
"""Figures of what each run found: where, and the methods of their panels in words."""


def write_page_figures(runs: Runs, text: str, folder: Path) -> None:
    """Write the figures that the text of the pages shows.

    Args:
        runs: by matrix. Beside AER-full its other forms are left out of the figures of a matrix: too many lines to be told apart.
    """
    for name in _named(r"(\w+)_(?:control|outcomes)", text, folder):
        full = any(r["method"] == "aer" for r in runs[name])
        write_figures([r for r in runs[name] if not (full and r["method"].startswith(PARTS))], folder, name)
    for name in _named(r"(\w+)_training", text, folder):
        save_training(runs[name], folder / f"{name}_training.png")
    for name in _named(f"({'|'.join(PANELS)})", text, folder):
        where, labels = PANELS[name]
        shown = where.records(runs)
        shown += [record for search in TUNINGS if search in labels for record in tuned(shown, search)]
        save_verdicts(shown, labels, folder / f"{name}.png")
    _write_differences(runs, folder)
    beside = RIVALS.records(runs)
    save_dots(beside, methods := rivals.order(beside), [rivals.label(method) for method in methods], folder / "rivals.png")


def _named(pattern: str, text: str, folder: Path) -> list[str]:
    return sorted(set(re.findall(rf"{folder.name}/{pattern}\.png", text)))


def _write_differences(runs: Runs, folder: Path) -> None:
    """Write the figures of differences: AER-full by places and by methods, and AER by places."""
    main, twelve, kinds = at.NINE.records(runs), at.TWELVE.records(runs), at.ALL_KINDS.records(runs)
    rows = forest.by_places([*main, *at.UNSEEN.records(runs)], "aer", ("grpo", best_method(main, "fixed")))
    rows += [row for ours in ("aer", "aer_uniform_weights") for row in forest.by_places(kinds, ours, ("grpo",))]
    forest.save_forest(rows, "test", folder / "places.png")
    forest.save_forest(forest.by_methods(main, "aer"), "test", folder / "methods.png")
    forest.save_forest(forest.by_places([*twelve, *tuned(twelve)], AER, (*BESIDE, TUNED)), "test", folder / "presets.png")


def write_figures(records: Sequence[Record], folder: Path, name: str) -> None:
    """Write NAME_control.png of the runs that have a target and, where runs were evaluated, NAME_outcomes.png."""
    held = [record for record in records if has_target(record)]
    if held:
        plots.step_responses(held, folder / f"{name}_control.png")
    if (split := evaluated(records)) is not None:
        plots.outcomes(records, split, folder / f"{name}_outcomes.png")
