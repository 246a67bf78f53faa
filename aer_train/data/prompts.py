"""Prompts: how the rows of a dataset become prompts, and which ones a step uses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from aer_train.config.tree import DataConfig, EvalConfig
from aer_train.data.columns import MISSING, column, column_names, gold_answers, is_empty, messages_of
from aer_train.data.encode import encode_texts
from aer_train.data.render import Problem, Rendered, renderer
from aer_train.data.sources import Table, read_table
from aer_train.data.suites import read_suite
from aer_train.seeds import generator
from aer_train.tasks import PREFIX, builtin_prompts
from aer_train.types import Prompt, Row

Message = Callable[[str], None]


@dataclass(frozen=True)
class Loaded:
    """Prompts, and a digest of the problems and answers that they were rendered from."""

    prompts: list[Prompt]
    rows: str


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one dataset."""

    prompts: list[Prompt]
    origin: Row
    """Where they come from, well enough to get them again: name, source, split, revision (commit of a hub dataset), problems, a digest of
    ids, texts and answers, and one of the rows that they were rendered from."""

    longest: int = 0
    """Tokens of the longest prompt."""
    largest_token: int = 0
    """The largest id of a token in them."""

    @property
    def name(self) -> str:
        """The suite's name; "" for other datasets."""
        return self.origin["name"]


def load_prompts(
    config: DataConfig,
    tokenizer: Any,
    source: str,
    split: str,
    *,
    revision: str | None = None,
    suite_dir: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    message: Message = print,
) -> PromptSet:
    """Load and render the prompts of `source`.

    Args:
        config: columns (those of a suite are its own), template and length limit.
        tokenizer: measures prompts, and renders them when `config.chat` is set.
        source: what `read_table` reads, suite:NAME, or builtin:TASK (an embedded task).
        split: split of a hub dataset or of an embedded task (train, validation or test).
        revision: of a hub dataset.
        suite_dir: folder with the suites as local files; None takes them from the hub.
        limit: use the first `limit` prompts; None uses all.
        seed: of the draw of an embedded task.
        message: is told how many rows and prompts were dropped, and how many prompts are there twice.
    Returns:
        At least one prompt. The id is the row's `id`, else its number.
    Raises:
        ValueError - naming the source and what is wrong with it.
    """
    if source.startswith(PREFIX):
        kept, tokens = _within(config, tokenizer, source, builtin_prompts(source, split, limit, seed), message)
        return _prompt_set("", source, split, None, kept, tokens)
    if source.startswith("suite:"):
        name = source.removeprefix("suite:")
        suite, table = read_suite(name, suite_dir)
        source, split = suite.dataset, suite.split
        config = replace(config, prompt_column=suite.problem, answer_column=suite.answer, tier_column=None)
        loaded = _render(config, tokenizer, source, table, suite.id, limit, message)
        prompts = [replace(p, id=_suite_id(name, p.id), tier=name) for p in loaded.prompts]
        if len(table.rows) != suite.size:
            message(f"{source}: suite {name} has {suite.size} problems, these are {len(table.rows)}")
    else:
        name, table = "", read_table(source, split, revision)
        loaded = _render(config, tokenizer, source, table, "id", limit, message)
        prompts = loaded.prompts
    kept, tokens = _within(config, tokenizer, source, prompts, message)
    _tell_repeated(source, kept, message)
    return _prompt_set(name, source, split, table.revision, kept, tokens, loaded.rows)


def load_eval_sets(config: EvalConfig, data: DataConfig, tokenizer: Any, *, seed: int = 0, message: Message = print) -> list[PromptSet]:
    """Return what an evaluation runs on: the prompts of eval.data, then each of eval.suites."""
    revision = config.revision
    if revision is None and config.data is not None and _hub_name(config.data) == _hub_name(data.train):
        revision = data.revision
    sources = ([] if config.data is None else [config.data]) + [f"suite:{name}" for name in config.suites]
    options: dict[str, Any] = {"revision": revision, "suite_dir": config.suite_dir, "limit": config.limit, "seed": seed, "message": message}
    sets = [load_prompts(data, tokenizer, source, config.split, **options) for source in sources]
    if len(sets) > 1:  # "all" is then the tier of all of them
        sets = [replace(s, prompts=[replace(p, tier="data") if p.tier == "all" else p for p in s.prompts]) for s in sets]
    return sets


def overlap(prompts: Iterable[Prompt], held_out: Iterable[Prompt]) -> list[Prompt]:
    """Return the held-out prompts that are also among `prompts`, whatever their case, spacing and dollar signs."""
    seen = {_plain(prompt.text) for prompt in prompts}
    return [prompt for prompt in held_out if _plain(prompt.text) in seen]


def order_at(size: int, seed: int, start: int, count: int) -> list[int]:
    """Return the places of `count` prompts from position `start` on of an endless sequence of seeded permutations.

    Args:
        size: how many prompts there are; each comes once an epoch.
        start: how many were taken before, >= 0.
    """
    chosen, epoch, order = [], -1, []
    for position in range(start, start + count):
        if position // size != epoch:
            epoch = position // size
            order = generator(seed, "epoch", epoch).permutation(size).tolist()
        chosen.append(order[position % size])
    return chosen


def _within(
    config: DataConfig, tokenizer: Any, source: str, prompts: list[Prompt], message: Message
) -> tuple[list[Prompt], list[list[int]]]:
    """The prompts that have tokens, and no more than data.max_prompt_tokens, with their tokens; the others are counted."""
    encoded = list(zip(prompts, encode_texts(tokenizer, prompts), strict=True))
    empty = [p for p, tokens in encoded if not tokens]
    if len(empty) == len(prompts):
        raise ValueError(f"data.template must give prompts with tokens, got none in any prompt of {source}: {config.template!r}")
    if empty:
        message(f"{source}: {len(empty)} of {len(prompts)} prompts dropped, which have no tokens (first: {empty[0].id})")
    short = [(p, tokens) for p, tokens in encoded if 0 < len(tokens) <= config.max_prompt_tokens]
    if not short:
        raise ValueError(
            f"data.max_prompt_tokens must leave some prompts, got {config.max_prompt_tokens}: every prompt of {source} is longer"
        )
    long = len(prompts) - len(empty) - len(short)
    if long:
        message(f"{source}: {long} of {len(prompts)} prompts dropped (data.max_prompt_tokens)")
    return [p for p, _ in short], [tokens for _, tokens in short]


def _render(config: DataConfig, tokenizer: Any, source: str, table: Table, id_column: str, limit: int | None, message: Message) -> Loaded:
    """The prompts of the first `limit` rows; rows that lack a problem or an answer are dropped and counted."""
    rows, render = table.rows[:limit], renderer(config, tokenizer)
    for option in ("prompt_column", "answer_column", "tier_column"):
        name = getattr(config, option)
        if name is not None and all(column(row, name) is MISSING for row in rows):
            raise ValueError(f"data.{option} must be a column of {source} ({', '.join(column_names(rows[0]))}), got {name!r}")
    found = [_read(config, source, number, row, id_column) for number, row in enumerate(rows)]
    read = [each for each in found if each is not None]
    if not read:
        raise ValueError(f"data.answer_column must hold an answer in some rows of {source}, got none in {config.answer_column!r}")
    if len(read) < len(rows):
        example = found.index(None)
        message(f"{source}: {len(rows) - len(read)} of {len(rows)} rows dropped, which have no problem or no answer (first: row {example})")
    try:
        return Loaded([_prompt(render, *each) for each in read], _digest([(problem, answers) for _, problem, answers, *_ in read]))
    except ValueError as error:
        raise ValueError(f"{error} ({source})") from error


def _read(config: DataConfig, source: str, number: int, row: Row, id_column: str) -> tuple[str, Problem, tuple[str, ...], str, Row] | None:
    """Id, problem, gold answers and tier of a row, and the row; None where it has no problem or no answer."""
    problem, answer = column(row, config.prompt_column), column(row, config.answer_column)
    if is_empty(problem) or is_empty(answer):
        return None
    known, answers = problem if isinstance(problem, str) else messages_of(problem), gold_answers(answer)
    if known is None:
        raise ValueError(
            f"prompt of row {number} of {source} must be text, or messages of text that end with the user's, "
            f"got {type(problem).__name__} ({_short(problem)})"
        )
    if answers is None:
        raise ValueError(
            f"answer of row {number} of {source} must be text, a finite number or a list of them, "
            f"got {type(answer).__name__} ({_short(answer)})"
        )
    tier = "all" if config.tier_column is None else column(row, config.tier_column)
    if tier is MISSING:
        raise ValueError(f"row {number} of {source} must have the column of data.tier_column, got none of {config.tier_column!r}")
    identity = column(row, id_column)
    return str(number if is_empty(identity) else identity), known, answers, str(tier), row


def _prompt(
    render: Callable[[Problem], Rendered], identity: str, problem: Problem, answers: tuple[str, ...], tier: str, row: Row
) -> Prompt:
    text, messages = render(problem)
    return Prompt(identity, text, answers[0], tier, answers[1:], messages is not None, row, messages)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _prompt_set(
    name: str, source: str, split: str, revision: str | None, prompts: list[Prompt], encoded: list[list[int]], rows: str | None = None
) -> PromptSet:
    digest = _digest([[p.id, p.text, p.answer, *p.others] for p in prompts])
    origin = {"name": name, "source": source, "split": split, "revision": revision, "problems": len(prompts), "digest": digest}
    longest, largest = max(map(len, encoded)), max(max(tokens, default=0) for tokens in encoded)
    return PromptSet(prompts, origin | {"rows": rows or digest}, longest, largest)


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def _suite_id(name: str, number: str) -> str:
    return number if number.startswith(f"{name}/") else f"{name}/{number}"


def _hub_name(source: str) -> str:
    return source.partition(":")[0]


def _tell_repeated(source: str, prompts: list[Prompt], message: Message) -> None:
    answers: dict[str, tuple[str, ...]] = {}
    repeated: list[Prompt] = []
    for prompt in prompts:
        text = _plain(prompt.text)
        if text in answers:
            repeated.append(prompt)
        answers.setdefault(text, prompt.golds)
    if repeated:
        other = sum(answers[_plain(prompt.text)] != prompt.golds for prompt in repeated)
        conflict = f", {other} of them with another answer" if other else ""
        message(f"{source}: {len(repeated)} of {len(prompts)} prompts repeat an earlier one (first: {repeated[0].id}){conflict}")


def _plain(text: str) -> str:
    return "".join(text.casefold().replace("$", "").split())
