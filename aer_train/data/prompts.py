"""Prompts: how the rows of a dataset become prompts, and which ones a step uses."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from aer_train.config import DataConfig, EvalConfig
from aer_train.seeds import generator
from aer_train.sources import Row, Table, read_table
from aer_train.suites import read_suite
from aer_train.tasks import PREFIX, builtin_prompts
from aer_train.types import Prompt

Message = Callable[[str], None]


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one dataset."""

    prompts: list[Prompt]
    origin: Row
    """Where they come from, well enough to get them again: name, source, split, revision (commit of a hub dataset), problems, and a digest
    of ids, texts and answers."""

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
        message: is told how many prompts were dropped and how many are there twice.
    Returns:
        At least one prompt. The id is the row's `id`, else its number.
    Raises:
        ValueError - naming the source and what is wrong with it.
    """
    if source.startswith(PREFIX):
        return _prompt_set("", source, split, None, builtin_prompts(source, split, limit, seed))
    if source.startswith("suite:"):
        name = source.removeprefix("suite:")
        suite, table = read_suite(name, suite_dir)
        source, split = suite.dataset, suite.split
        config = replace(config, prompt_column=suite.problem, answer_column=suite.answer, tier_column=None)
        prompts = [replace(p, id=_suite_id(name, p.id), tier=name) for p in _render(config, tokenizer, source, table, suite.id, limit)]
        if len(table.rows) != suite.size:
            message(f"{source}: suite {name} has {suite.size} problems, these are {len(table.rows)}")
    else:
        name, table = "", read_table(source, split, revision)
        prompts = _render(config, tokenizer, source, table, "id", limit)
    kept = [p for p in prompts if len(encode_prompt(tokenizer, p.text)) <= config.max_prompt_tokens]
    if not kept:
        raise ValueError(
            f"data.max_prompt_tokens must leave some prompts, got {config.max_prompt_tokens}: every prompt of {source} is longer"
        )
    if len(kept) < len(prompts):
        message(f"{source}: {len(prompts) - len(kept)} of {len(prompts)} prompts dropped (data.max_prompt_tokens)")
    _tell_repeated(source, kept, message)
    return _prompt_set(name, source, split, table.revision, kept)


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


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Return the prompt's tokens. A rendered chat template already starts with its begin-of-sequence token; it is not added twice."""
    has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    try:
        return tokenizer.encode(text, add_special_tokens=not has_bos)
    except Exception as error:  # tokenizers has no class of its own for a character that it lacks
        raise ValueError(f"model.name must have a tokenizer that can read the prompts, got {text[:60]!r}: {error}") from error


def prompts_at(prompts: list[Prompt], seed: int, start: int, count: int) -> list[Prompt]:
    """Return `count` prompts from position `start` on of an endless sequence of seeded permutations.

    Args:
        prompts: all of them; each comes once an epoch.
        start: how many were taken before, >= 0.
    """
    chosen, epoch, order = [], -1, []
    for position in range(start, start + count):
        if position // len(prompts) != epoch:
            epoch = position // len(prompts)
            order = generator(seed, "epoch", epoch).permutation(len(prompts)).tolist()
        chosen.append(prompts[order[position % len(prompts)]])
    return chosen


def answer_text(value: Any) -> str | None:
    """Return a gold answer as text: text, a finite number, or a list of one of them. None for anything else, such as alternatives.

    A number with no fraction loses its point (27.0 is 27): columns of whole numbers are often stored as floats.
    """
    if isinstance(value, list) and len(value) == 1:
        return answer_text(value[0])
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    return None


def _render(config: DataConfig, tokenizer: Any, source: str, table: Table, id_column: str, limit: int | None) -> list[Prompt]:
    render = _renderer(config, tokenizer)
    return [_prompt(config, source, number, row, id_column, render) for number, row in enumerate(table.rows[:limit])]


def _renderer(config: DataConfig, tokenizer: Any) -> Callable[[str], str]:
    if "{problem}" not in config.template:
        raise ValueError(f"data.template must contain {{problem}}, got {config.template!r}")
    if not config.chat:
        if config.system is not None:
            raise ValueError(f"data.system must be None without data.chat, got {config.system!r}")
        return lambda problem: config.template.replace("{problem}", problem)
    if tokenizer.chat_template is None:
        raise ValueError("data.chat must be False for a tokenizer without a chat template, got True")
    system = [] if config.system is None else [{"role": "system", "content": config.system}]

    def render(problem: str) -> str:
        user = {"role": "user", "content": config.template.replace("{problem}", problem)}
        return tokenizer.apply_chat_template([*system, user], tokenize=False, add_generation_prompt=True)

    return render


def _prompt(config: DataConfig, source: str, number: int, row: Row, id_column: str, render: Callable[[str], str]) -> Prompt:
    for name, column in (
        ("prompt_column", config.prompt_column),
        ("answer_column", config.answer_column),
        ("tier_column", config.tier_column),
    ):
        if column is not None and column not in row:
            raise ValueError(f"data.{name} must be a column of {source} ({', '.join(sorted(row))}), got {column!r}")
    problem, answer = row[config.prompt_column], answer_text(row[config.answer_column])
    if not isinstance(problem, str):
        raise ValueError(f"prompt of row {number} of {source} must be text, got {type(problem).__name__} ({problem!r})")
    if answer is None:
        found = row[config.answer_column]
        raise ValueError(
            f"answer of row {number} of {source} must be text, a finite number or a list of one, got {type(found).__name__} ({found!r})"
        )
    tier = "all" if config.tier_column is None else str(row[config.tier_column])
    return Prompt(str(row.get(id_column, number)), render(problem), answer, tier)


def _prompt_set(name: str, source: str, split: str, revision: str | None, prompts: list[Prompt]) -> PromptSet:
    text = json.dumps([[p.id, p.text, p.answer] for p in prompts])
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    origin = {"name": name, "source": source, "split": split, "revision": revision, "problems": len(prompts), "digest": digest}
    return PromptSet(prompts, origin)


def _suite_id(name: str, number: str) -> str:
    return number if number.startswith(f"{name}/") else f"{name}/{number}"


def _hub_name(source: str) -> str:
    return source.partition(":")[0]


def _tell_repeated(source: str, prompts: list[Prompt], message: Message) -> None:
    answers: dict[str, str] = {}
    repeated: list[Prompt] = []
    for prompt in prompts:
        text = _plain(prompt.text)
        if text in answers:
            repeated.append(prompt)
        answers.setdefault(text, prompt.answer)
    if repeated:
        other = sum(answers[_plain(prompt.text)] != prompt.answer for prompt in repeated)
        conflict = f", {other} of them with another answer" if other else ""
        message(f"{source}: {len(repeated)} of {len(prompts)} prompts repeat an earlier one (first: {repeated[0].id}){conflict}")


def _plain(text: str) -> str:
    return "".join(text.casefold().replace("$", "").split())
