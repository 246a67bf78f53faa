"""aer-train grade: saved responses graded again, beside the verdict that was stored with them and beside a second rule.

A verdict is what a policy is trained on, so a rule that changed, or that another one contradicts, is worth looking at row by row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aer_train.config.tree import RewardConfig
from aer_train.data.files import FORMATS, file_format
from aer_train.data.sources import read_table
from aer_train.monitor.console import Console, table
from aer_train.run.files import write_atomic
from aer_train.types import Question, Row, Verdict
from aer_train.verify import Verifier, alternatives
from aer_train.verify.extract import gold_answer
from aer_train.verify.second import SecondRule

CHUNK = 512
"""Responses that are graded between two looks at the progress."""

SHOWN = 10
"""Disagreements that are printed."""

SAMPLE_FORMATS = (".jsonl", ".parquet")
"""Of the files that a folder stands for; it may hold settings and results in others."""

OUT_FORMATS = (".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read."""

    response: str = "response"
    answer: str = "answer"
    outcome: str | None = None
    """Column with the stored verdict (an outcome, true or false, or a reward). None: outcome, else reward, else there is none."""


def grade_files(sources: Sequence[Path], columns: Columns, reward: RewardConfig, second: str | None, out: Path | None) -> int:
    """Grade saved responses, print what was found, and return the number of disagreements.

    Args:
        sources: files in one of FORMATS, run folders (all their samples), or folders of .jsonl or .parquet files.
        reward: the rule, its timeout and its processes.
        second: exact, math_verify, or a dotted path to (response_text, answer) -> float in [0, 1]; None compares with no second rule.
        out: .json, .jsonl or .parquet file for the rows that disagree; None writes none.
    Raises:
        ValueError - naming the file or column that is missing or empty.
    """
    if out is not None and out.suffix not in OUT_FORMATS:
        raise ValueError(f"--out must end in {', '.join(OUT_FORMATS)}, got {out}")
    files = [file for source in sources for file in _files(source)]
    console, counts = Console(), Counts()
    try:
        with (
            Verifier(reward.kind, reward.timeout, reward.workers, reward.lenient, reward.request_timeout, reward.retries) as verifier,
            SecondRule(second, reward.timeout, reward.workers) as other,
        ):
            for place, file in enumerate(files, 1):
                rows, questions = _read(file, columns)
                verifier.check(questions[0])
                console.start(len(rows), 0, f"file {place} of {len(files)}" if len(files) > 1 else "grade")
                for start in range(0, len(rows), CHUNK):
                    chunk = rows[start : start + CHUNK]
                    asked = [[questions[row["row"]]._replace(answer=gold) for gold in row["golds"]] for row in chunk]
                    pairs = [question[:2] for part in asked for question in part]
                    pending, opinions = alternatives.submit(verifier, asked), other.submit(pairs)
                    each = iter(opinions.result())
                    for row, verdict in zip(chunk, pending.result(), strict=True):
                        counts.add(row, verdict, _best([next(each) for _ in row.pop("golds")]))
                    console.advance(len(chunk))
    finally:
        console.close()
    counts.show(console, second)
    if out is not None:
        _write(out, counts.disagreements)
        console.message(f"{len(counts.disagreements)} disagreements written to {out}")
    return len(counts.disagreements)


class Counts:
    """What was found so far."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.stored: Counter[tuple[str, str]] = Counter()
        self.second: Counter[tuple[bool, str]] = Counter()
        self.disagreements: list[Row] = []

    def add(self, row: Row, verdict: Verdict, opinion: str | None) -> None:
        """Count a response; `row` holds file, row, response, answer and stored, `opinion` what the second rule says."""
        self.outcomes[verdict.outcome] += 1
        correct, stored = verdict.outcome == "correct", row["stored"]
        changed = stored is not None and (stored == "correct") != correct
        contradicted = opinion is not None and (opinion == "correct") != correct
        if stored is not None:
            self.stored[stored, verdict.outcome] += 1
        if opinion is not None:
            self.second[correct, opinion] += 1
        if changed or contradicted:
            found = {"outcome": verdict.outcome, "extracted": verdict.extracted, "second": opinion, "detail": verdict.detail}
            with_whom = " and ".join(name for name, holds in (("stored", changed), ("second", contradicted)) if holds)
            self.disagreements.append({**row, **found, "disagrees_with": with_whom})

    def show(self, console: Console, second: str | None) -> None:
        """Print the tables and the first disagreements."""
        total = self.outcomes.total()
        console.rich.print(
            table("outcomes", ["outcome", "responses", "share"], [_cells(n, c, total) for n, c in self.outcomes.most_common()])
        )
        if self.stored:
            moved = [(f"{a} -> {b}", count) for (a, b), count in self.stored.most_common() if a != b]
            same = sum(count for (a, b), count in self.stored.items() if a == b)
            rows = [_cells(name, count, total) for name, count in [("the same", same), *moved]]
            console.rich.print(table("stored verdict -> now", ["verdict", "responses", "share"], rows))
        if self.second:
            rows = [
                _cells(f"{'correct' if ours else 'not correct'}, {theirs}", n, total) for (ours, theirs), n in self.second.most_common()
            ]
            console.rich.print(table(f"this rule, {second}", ["verdicts", "responses", "share"], rows))
        for row in self.disagreements[:SHOWN]:
            console.message(_line(row))
        console.message(f"{len(self.disagreements)} of {total} responses disagree with the stored verdict or the second rule")


def _cells(name: str, count: int, total: int) -> list[str]:
    return [name, f"{count:,}", f"{count / total:.2%}"]


def _line(row: Row) -> str:
    verdicts = ", ".join(f"{name} {row[name]}" for name in ("stored", "second") if row[name] is not None)
    found = row["response"][-60:] if row["extracted"] is None else row["extracted"][:100]
    return f"  {row['file']} row {row['row']}: {row['outcome']} ({verdicts}), answer {found!r}, gold {gold_answer(row['answer'])[:100]!r}"


def _files(source: Path) -> list[Path]:
    """The files that a path stands for."""
    if source.is_file():
        if file_format(source) is None:
            raise ValueError(f"file must end in {', '.join(FORMATS)}, got {source}")
        return [source]
    if not source.is_dir():
        raise ValueError(f"file must be an existing file or folder, got {source}")
    folder = source / "samples" if (source / "samples").is_dir() else source
    files = sorted(file for file in folder.iterdir() if file.suffix in SAMPLE_FORMATS and not file.name.startswith("."))
    if not files:
        raise ValueError(f"folder must hold {' or '.join(SAMPLE_FORMATS)} files, got none in {folder}")
    return files


def _read(file: Path, columns: Columns) -> tuple[list[Row], list[Question]]:
    """Rows with file, row, response, answer and the stored verdict as an outcome (None: there is none), and what rewards see of them."""
    rows = read_table(str(file), "", None).rows
    stored = columns.outcome or next((name for name in ("outcome", "reward") if name in rows[0]), None)
    for name, column in (("--response-column", columns.response), ("--answer-column", columns.answer), ("--outcome-column", stored)):
        absent = column is not None and next((number for number, row in enumerate(rows) if column not in row), None)
        if absent is not None and absent is not False:
            raise ValueError(f"{name} must be a column of {file} ({', '.join(sorted(rows[absent]))} in row {absent}), got {column!r}")
    for number, row in enumerate(rows):
        for column in (columns.response, columns.answer):
            if not isinstance(row[column], str):
                raise ValueError(f"{column} of row {number} of {file} must be text, got {type(row[column]).__name__} ({row[column]!r})")
    questions = [Question(row[columns.response], row[columns.answer], str(row.get("prompt", "")), row) for row in rows]
    found = [
        {
            "file": str(file),
            "row": number,
            "response": row[columns.response],
            "answer": row[columns.answer],
            "golds": alternatives.restored(row[columns.answer], row.get("other_answers")),
            "stored": None if stored is None else _outcome(row[stored]),
        }
        for number, row in enumerate(rows)
    ]
    return found, questions


def _best(opinions: list[str | None]) -> str | None:
    """The second rule's opinion by several gold answers."""
    return "correct" if "correct" in opinions else opinions[0]


def _outcome(value: Any) -> str | None:
    """A stored verdict as an outcome: outcomes, truth values and rewards come in."""
    if value is None or isinstance(value, str):
        return value
    return "correct" if value == 1 else "wrong"


def _write(out: Path, rows: list[Row]) -> None:
    if out.suffix == ".json":
        write_atomic(out, json.dumps(rows, indent=2))
    elif out.suffix == ".jsonl":
        write_atomic(out, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(list(map(_encodable, rows)), schema=_schema()), buffer, compression="zstd")
        write_atomic(out, buffer.getvalue().to_pybytes())


def _encodable(row: Row) -> Row:
    """JSON can hold surrogates, which UTF-8 cannot."""
    return {name: value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value for name, value in row.items()}


def _schema() -> Any:
    import pyarrow as pa

    texts = ["file", "response", "answer", "stored", "outcome", "extracted", "second", "detail", "disagrees_with"]
    return pa.schema([("row", pa.int64()), *((name, pa.string()) for name in texts)])
