"""The pages of `PAGES` in docs: prose by hand, tables and figures from the committed records.

A table stands between `<!-- table: MATRIX KIND [SETTING] [lrSCALE] -->` and `<!-- end -->`; `python -m study page` writes it anew. It shows
the runs of a matrix, or of several as in `compare+robust`; with SETTING those of the settings whose names begin so (or so, as in
`countdown+worked`), with SCALE those at that learning rate. `<!-- table: claims NAME -->` is a list of differences (`study.claims`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from study import rivals
from study.chance import chance_table
from study.claims import claims_table
from study.conditions import start_table
from study.factorial import factorial_table
from study.figures import write_page_figures
from study.grid import grid_table
from study.measures import evaluated
from study.names import AER
from study.places import TUNED, places_table, tuned
from study.reach import reach_table
from study.real.results import real_table
from study.records import Record, read_records
from study.tables import best_method, control_table, generalization_table, outcome_table, paired_table
from study.temperatures import temperature_table
from study.tiers import tier_table
from study.where import Runs, Where

ROOT = Path(__file__).parents[1]
NAMES = ("study", "study_appendix", "study_tables", "study_methods", "study_token_targets", "real_model")
PAGES = tuple(ROOT / "docs" / f"{name}.md" for name in NAMES)
RESULTS = ROOT / "study" / "results"
FIGURES = ROOT / "docs" / "study"

_BLOCK = re.compile(r"(<!-- table: ([\w+]+) (\w+)(?: ((?!lr[\d.]+ )[\w+-]+))?(?: lr([\d.]+))? -->\n).*?(<!-- end -->)", re.DOTALL)

Made = Callable[[Sequence[Record], str], str]
"""A table in Markdown from records, and the method that its kind names: aer of places_aer, or nothing."""

KINDS: dict[str, Made] = {
    "control": lambda records, _: control_table(records),
    "held": lambda records, _: control_table(records, places=False),
    "outcomes": lambda records, _: outcome_table(records, "test"),
    "validation": lambda records, _: outcome_table(records, "validation"),
    "generalization": lambda records, _: generalization_table(records, "test"),
    "tiers": lambda records, _: tier_table(records),
    "reach": lambda records, _: reach_table(records),
    "rivals": lambda records, _: rivals.rivals_table(records),
    "tuning": lambda records, _: rivals.tuning_table(records),
    "grid": lambda records, _: grid_table(records),
    "factorial": lambda records, _: factorial_table(records),
    "temperatures": lambda records, other: temperature_table(records, "test", other or None),
    "places": lambda records, ours: places_table(records, "test", ours, ("grpo", best_method(records, "fixed"))),
    "beside": lambda records, ours: places_table(records, "test", ours, ("grpo", AER)),
    "tuned": lambda records, ours: places_table([*records, *tuned(records)], "test", ours, (TUNED,)),
    "chance": chance_table,
    "against": lambda records, other: paired_table(
        records, evaluated(records) or "test", best_method(records, "fixed") if other == "fixed" else other
    ),
}
"""What a kind shows. held is control without a row for each setting; temperatures_METHOD has the differences to it; places_METHOD is beside
plain GRPO and the best fixed coefficient, beside_METHOD beside plain GRPO and AER, tuned_METHOD beside the fixed one that is best in
each setting; chance_METHOD is what others hold of its target. The best fixed coefficient, in against_fixed too, is so on validation, in the
settings that all of them share."""


def table(records: Sequence[Record], kind: str) -> str:
    """Return a table in Markdown.

    Args:
        kind: one of KINDS, and behind a _ the method that it is about.
    """
    name, _, method = kind.partition("_")
    return KINDS[name](records, method)


def read_results(results: Path = RESULTS) -> Runs:
    """Return the records of each MATRIX.parquet of a folder."""
    return {path.stem: read_records(path) for path in sorted(results.glob("*.parquet"))}


def written(page: str, runs: Runs, results: Path = RESULTS) -> str:
    """Return the page with every table made anew.

    Args:
        runs: of `results`, where MATRIX.json has the conditions of a matrix.
    """

    def replace(match: re.Match[str]) -> str:
        opening, matrices, kind, setting, scale, closing = match.groups()
        if matrices == "claims":
            return opening + claims_table(runs, kind, "test") + closing
        if kind in ("start", "real"):
            conditions = json.loads((results / f"{matrices}.json").read_text(encoding="utf-8"))
            made = start_table(conditions) if kind == "start" else real_table(runs[matrices], conditions["policies"])
            return opening + made + closing
        records = Where("shown", matrices, tuple((setting or "").split("+"))).records(runs)
        return opening + table([r for r in records if scale in (None, f"{r['lr_scale']:g}")], kind) + closing

    return _BLOCK.sub(replace, page)


def write_page() -> None:
    """Write the tables of the pages, and the figures that they show."""
    runs = read_results()
    texts = {page: written(page.read_text(encoding="utf-8"), runs) for page in PAGES}
    for page, text in texts.items():
        page.write_text(text, encoding="utf-8")
    write_page_figures(runs, "".join(texts.values()), FIGURES)
