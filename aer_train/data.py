"""Prompts: where they come from, how they are rendered, and which ones a step uses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aer_train.config import DataConfig
from aer_train.seeds import generator
from aer_train.tasks import PREFIX, builtin_prompts
from aer_train.types import Prompt


def load_prompts(
    config: DataConfig,
    tokenizer: Any,
    source: str,
    split: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    message: Callable[[str], None] = print,
) -> list[Prompt]:
    """Load and render the prompts of `source`.

    Args:
        config: columns, template and length limit.
        tokenizer: measures prompts, and renders them when `config.chat` is set.
        source: JSONL or parquet file, hub dataset id (`org/name` or `org/name:config`), or builtin:TASK (an embedded task).
        split: split of a hub dataset or of an embedded task (train, validation or test).
        limit: use the first `limit` prompts; None uses all.
        seed: of the draw of an embedded task.
        message: is told how many prompts were dropped.
    Returns:
        At least one prompt. The id is the row's `id`, else its number.
    Raises:
        ValueError - naming the source and what is wrong with it.
    """
    if source.startswith(PREFIX):
        return builtin_prompts(source, split, limit, seed)
    rows = _read_rows(source, split, config.revision)
    if not rows:
        raise ValueError(f"{source} must hold at least one row, got an empty dataset")
    render = _renderer(config, tokenizer)
    prompts = [_prompt(config, source, number, row, render) for number, row in enumerate(rows[:limit])]
    kept = [p for p in prompts if len(encode_prompt(tokenizer, p.text)) <= config.max_prompt_tokens]
    if not kept:
        raise ValueError(
            f"data.max_prompt_tokens must leave some prompts, got {config.max_prompt_tokens}: every prompt of {source} is longer"
        )
    if len(kept) < len(prompts):
        message(f"{source}: {len(prompts) - len(kept)} of {len(prompts)} prompts dropped (data.max_prompt_tokens)")
    return kept


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Return the prompt's tokens. A rendered chat template already starts with its begin-of-sequence token; it is not added twice."""
    has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return tokenizer.encode(text, add_special_tokens=not has_bos)


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


def _read_rows(source: str, split: str, revision: str | None) -> list[dict[str, Any]]:
    path = Path(source).expanduser()
    if path.suffix not in (".jsonl", ".parquet"):
        return _read_hub(source, split, revision)
    if not path.is_file():
        raise ValueError(f"data must name an existing file, got {source}")
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(path).to_pylist()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{source} must be a parquet file, got: {error}") from error
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{source} line {number} must be a JSON object, got: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{source} line {number} must be a JSON object, got {type(row).__name__}")
            rows.append(row)
    return rows


def _read_hub(source: str, split: str, revision: str | None) -> list[dict[str, Any]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    name, _, config = source.partition(":")
    try:
        return load_dataset(name, config or None, split=split, revision=revision).to_list()
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"data must be a .jsonl or .parquet file, a hub dataset id or builtin:TASK, got {source!r} (split {split!r}): {reason}"
        ) from error


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


def _prompt(config: DataConfig, source: str, number: int, row: dict[str, Any], render: Callable[[str], str]) -> Prompt:
    for name, column in (
        ("prompt_column", config.prompt_column),
        ("answer_column", config.answer_column),
        ("tier_column", config.tier_column),
    ):
        if column is not None and column not in row:
            raise ValueError(f"data.{name} must be a column of {source} ({', '.join(sorted(row))}), got {column!r}")
    problem, answer = row[config.prompt_column], row[config.answer_column]
    for name, value in (("prompt", problem), ("answer", answer)):
        if not isinstance(value, str):
            raise ValueError(f"{name} of row {number} of {source} must be text, got {type(value).__name__} ({value!r})")
    tier = "all" if config.tier_column is None else str(row[config.tier_column])
    return Prompt(str(row.get("id", number)), render(problem), answer, tier)
