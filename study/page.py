"""docs/study.md and docs/study_tables.md: prose by hand, tables and figures from the committed records.

A table stands between `<!-- table: MATRIX KIND [SETTING] [lrSCALE] -->` and `<!-- end -->`; `python -m study page` writes it anew. It shows
the runs of a matrix, or of several as in `compare+robust`; with SETTING those of the settings whose names begin so (or so, as in
`countdown+worked`), with SCALE those at that learning rate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from study import forest, plots
from study.conditions import start_table
from study.control import has_target
from study.places import TUNED, places_table, tuned
from study.reach import reach_table
from study.records import Record, read_records
from study.tables import best_method, control_table, generalization_table, outcome_table, paired_table
from study.tiers import tier_table

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "study.md", ROOT / "docs" / "study_tables.md")
RESULTS = ROOT / "study" / "results"
FIGURES = ROOT / "docs" / "study"

MAIN = ("compare", "robust", "advantage")
"""The matrices in which each component is taken out."""

PARTS = "aer_"
"""How the names of AER in other forms than the full one begin."""

PRESETS_FORM, BESIDE = "aer_uniform_clock", ("grpo", "fixed03", "fixed10")
"""AER as the presets of the trainer have it, and what ran beside it."""

PRESETS_PLACES = ("allocation", "robust_again", "advantage_again")
"""The matrices whose places it was run at with every one of them."""

UNSEEN = ("mixes", "fresh", "large")
"""Those on whose places nothing was chosen."""

KINDS = ("kinds", "allocation", "kinds_again")
"""Those with places whose tiers are of different kinds: the settings that begin with "mixed"."""

_BLOCK = re.compile(r"(<!-- table: ([\w+]+) (\w+)(?: ((?!lr[\d.]+ )[\w+-]+))?(?: lr([\d.]+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def table(records: Sequence[Record], kind: str) -> str:
    """Return a table in Markdown.

    Args:
        kind: control, held (the same without a row for each setting), outcomes, generalization, tiers, reach, places_METHOD (beside plain
            GRPO and the best fixed coefficient), tuned_METHOD (beside the fixed coefficient that is best at each place), against_METHOD, or
            against_fixed. The best fixed coefficient is so on validation, at the places that all of them share.
    """
    if kind in ("control", "held"):
        return control_table(records, by_setting=kind == "control")
    if kind == "outcomes":
        return outcome_table(records, "test")
    if kind == "generalization":
        return generalization_table(records, "test")
    if kind == "tiers":
        return tier_table(records)
    if kind == "reach":
        return reach_table(records)
    if kind.startswith("places_"):
        return places_table(records, "test", kind.removeprefix("places_"), ("grpo", best_method(records, "fixed")))
    if kind.startswith("tuned_"):
        return places_table([*records, *tuned(records)], "test", kind.removeprefix("tuned_"), (TUNED,))
    other = kind.removeprefix("against_")
    return paired_table(records, "test", best_method(records, "fixed") if other == "fixed" else other)


def written(page: str, results: Path = RESULTS) -> str:
    """Return the page with every table made anew from `results`: MATRIX.jsonl has the runs, MATRIX.json the conditions."""
    runs = {path.stem: read_records(path) for path in results.glob("*.jsonl")}

    def replace(match: re.Match[str]) -> str:
        opening, matrices, kind, setting, scale, closing = match.groups()
        if kind == "start":
            return opening + start_table(json.loads((results / f"{matrices}.json").read_text(encoding="utf-8"))) + closing
        records = [record for matrix in matrices.split("+") for record in runs[matrix]]
        beginnings = tuple((setting or "").split("+"))
        shown = [r for r in records if r["setting"].startswith(beginnings) and scale in (None, f"{r['lr_scale']:g}")]
        return opening + table(shown, kind) + closing

    return _BLOCK.sub(replace, page)


def write_page() -> None:
    """Write the tables of the pages, and the figures beside them of the matrices whose figures they show: beside full AER without its other
    forms, too many lines to be told apart."""
    texts = {page: written(page.read_text(encoding="utf-8")) for page in PAGES}
    for page, text in texts.items():
        page.write_text(text, encoding="utf-8")
    shown = set(re.findall(rf"{FIGURES.name}/(\w+)_(?:control|outcomes)\.png", "".join(texts.values())))
    for path in sorted(RESULTS.glob("*.jsonl")):
        if path.stem in shown:
            records = read_records(path)
            full = any(r["method"] == "aer" for r in records)
            write_figures([r for r in records if not (full and r["method"].startswith(PARTS))], FIGURES, path.stem)
    _write_differences()


def _write_differences() -> None:
    """Write the figures of differences: full AER by places and by methods, the presets' form by places."""
    main, unseen, kinds, presets = (
        [r for matrix in group for r in read_records(RESULTS / f"{matrix}.jsonl")] for group in (MAIN, UNSEEN, KINDS, PRESETS_PLACES)
    )
    kinds = [r for r in kinds if r["setting"].startswith("mixed")]
    rows = forest.by_places([*main, *unseen], "aer", ("grpo", best_method(main, "fixed")))
    rows += [row for ours in ("aer", "aer_uniform_weights") for row in forest.by_places(kinds, ours, ("grpo",))]
    forest.draw(rows, "test", FIGURES / "places.png")
    forest.draw(forest.by_methods(main, "aer"), "test", FIGURES / "methods.png")
    forest.draw(forest.by_places([*presets, *tuned(presets)], PRESETS_FORM, (*BESIDE, TUNED)), "test", FIGURES / "presets.png")


def write_figures(records: Sequence[Record], folder: Path, name: str) -> None:
    """Write NAME_control.png of the runs that have a target and, where runs were evaluated, NAME_outcomes.png."""
    held = [record for record in records if has_target(record)]
    if held:
        plots.step_responses(held, folder / f"{name}_control.png")
    splits = [split for split in ("test", "validation") if all(split in r["right"] for r in records if r["diverged"] is None)]
    if splits:
        plots.outcomes(records, splits[0], folder / f"{name}_outcomes.png")
