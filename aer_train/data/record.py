"""What a run was given, kept in its folder (data.json), so that a resume can say what has changed since."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from aer_train.config.tree import DataConfig
from aer_train.data.prompts import PromptSet
from aer_train.data.render import chat_template
from aer_train.types import Row

RENDERING = ("chat", "system", "template", "template_args", "date", "max_prompt_tokens")
"""Options of data that decide what a problem looks like, and whether it stays."""


def about_data(config: DataConfig, tokenizer: Any, train: PromptSet, evaluation: Sequence[PromptSet]) -> Row:
    """Return where the prompts come from, with digests, and how they were rendered."""
    template = chat_template(tokenizer) if config.chat else None
    digest = None if template is None else hashlib.blake2b(template.encode(), digest_size=16).hexdigest()
    options = {name: getattr(config, name) for name in RENDERING} | {"template_args": list(config.template_args)}
    return {"train": train.origin, "eval": [prompts.origin for prompts in evaluation], "rendering": {**options, "chat_template": digest}}


def changes(before: Row, now: Row) -> list[str]:
    """Return in words what differs between what a run was given: the reward functions' code, the training data, and what is evaluated on in
    both.

    Args:
        before, now: results of `about_data`, with `source_digests` as "functions".
    """
    return _function_changes(before.get("functions", {}), now["functions"]) + _data_changes(before, now)


def _function_changes(old: dict[str, str], new: dict[str, str]) -> list[str]:
    return [f"the file of {path} has changed" for path, digest in new.items() if old.get(path, digest) != digest]


def _data_changes(before: Row, now: Row) -> list[str]:
    sets = [(before["train"], now["train"])]
    sets += [(old, new) for old in before["eval"] for new in now["eval"] if (old["name"], old["source"]) == (new["name"], new["source"])]
    found = [text for old, new in sets for text in _changes(old, new)]
    if not any("otherwise" in text for text in found):
        return found
    names = [name for name, value in now["rendering"].items() if value != before["rendering"].get(name)]
    causes = ["the tokenizer's chat template" if name == "chat_template" else f"data.{name}" for name in names]
    return [*found, f"changed: {', '.join(causes) or 'the tokenizer, or how it renders'}"]


def _changes(old: Row, new: Row) -> list[str]:
    if (old["source"], old["split"]) != (new["source"], new["split"]):
        return [f"the data are {new['source']} ({new['split']}), and were {old['source']} ({old['split']})"]
    if old["rows"] != new["rows"]:
        return [f"the data in {new['source']} have other problems or answers ({new['problems']} prompts, and had {old['problems']})"]
    if old["digest"] != new["digest"]:
        return [f"the data in {new['source']} are rendered otherwise ({new['problems']} prompts, and were {old['problems']})"]
    return []
