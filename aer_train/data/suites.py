"""The benchmarks that papers on mathematics RL report, each defined once: where it is, at which commit, and in which columns.

The commits were read from public repositories that pin the same datasets, not from the hub itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from aer_train.data.sources import Table, read_table

LOCAL_FORMATS = (".jsonl", ".parquet")
"""Of the files in suite_dir."""


@dataclass(frozen=True)
class Suite:
    """A benchmark on the hub (or in a local file)."""

    dataset: str
    """Hub id, with its config where it has several."""
    split: str
    revision: str | None
    problem: str
    """Column of the problem."""
    answer: str
    """Column of the gold answer: text, a number, a list of one, or a solution that ends in #### or boxed."""
    size: int
    """Problems."""
    id: str = "id"


SUITES = {
    "aime24": Suite("HuggingFaceH4/aime_2024", "train", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", "problem", "answer", 30),
    "aime25": Suite("math-ai/aime25", "test", "563bb8404243c5f09de6ec262f2db674fe5bce9b", "problem", "answer", 30),
    "amc23": Suite("math-ai/amc23", "test", "80815d37005feb82cd7f8fbc6901d5d3eff43057", "question", "answer", 40),
    "math500": Suite("HuggingFaceH4/MATH-500", "test", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "problem", "answer", 500, "unique_id"),
    "minerva": Suite("math-ai/minervamath", "test", "ee46ddc498933b1977577953250ca5c66be64f96", "question", "answer", 272),
    "olympiadbench": Suite(
        "Hothan/OlympiadBench:OE_TO_maths_en_COMP", "train", "91184b52131e7fc9455fef848035173aea8cc01a", "question", "final_answer", 674
    ),
    "gsm8k": Suite("openai/gsm8k:main", "test", "740312add88f781978c0658806c59bc2815b9866", "question", "answer", 1319),
}
"""By the name that --suites takes."""


def read_suite(name: str, folder: str | None) -> tuple[Suite, Table]:
    """Return a suite with its rows.

    Args:
        name: one of SUITES.
        folder: holds NAME.jsonl or NAME_SPLIT.jsonl (or .parquet) with the columns problem, answer and id; None reads the pinned commit
            from the hub.
    Raises:
        ValueError - an unknown name, no such file, or the hub cannot be reached.
    """
    if name not in SUITES:
        raise ValueError(f"suites must be of {', '.join(SUITES)}, got {name!r}")
    suite = SUITES[name]
    if folder is not None:
        file = _local_file(name, suite.split, Path(folder).expanduser())
        suite = replace(suite, dataset=str(file), revision=None, problem="problem", answer="answer", id="id")
    return suite, read_table(suite.dataset, suite.split, suite.revision)


def _local_file(name: str, split: str, folder: Path) -> Path:
    names = [f"{stem}{ending}" for stem in (name, f"{name}_{split}") for ending in LOCAL_FORMATS]
    for file in names:
        if (folder / file).is_file():
            return folder / file
    raise ValueError(f"suite_dir must hold {names[0]} (or {', '.join(names[1:])}), got {folder}")
