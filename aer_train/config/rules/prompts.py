"""Which prompts are drawn, and how."""

from __future__ import annotations

import math
from datetime import datetime

from aer_train.config.named import is_named_value
from aer_train.config.rules.check import check
from aer_train.config.tree import DataConfig, TrainConfig
from aer_train.tasks import PREFIX

OWN_ARGS = frozenset(
    {"conversation", "messages", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message", "padding", "truncation"}
    | {"max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now"}
)
"""Arguments of a chat template that are not data.template_args."""

OF_ROWS = ("prompt_column", "answer_column", "tier_column", "chat", "system", "template_args", "date", "template")
"""Options of data that embedded tasks have no use for."""


def check_data(config: TrainConfig) -> None:
    data = config.data
    check("data.max_prompt_tokens", data.max_prompt_tokens, data.max_prompt_tokens >= 1, "be >= 1")
    check("data.limit", data.limit, data.limit is None or data.limit >= 1, "be >= 1 or None")
    for arg in data.template_args:
        check("data.template_args", arg, is_named_value(arg), "each be name=value")
        check("data.template_args", arg, arg.partition("=")[0] not in OWN_ARGS, "leave the messages and the kind of output to the trainer")
    check("data.date", data.date, data.date is None or _is_date(data.date), "be a date such as 2026-11-29, or None")
    _check_embedded(config)


def check_difficulty(config: TrainConfig) -> None:
    options, size = config.difficulty, config.rollout.group_size
    drop, target = options.drop_solved, options.target
    check("difficulty.drop_solved", drop, drop is None or 0 < drop <= 1, "be in (0, 1] or None")
    check("difficulty.recheck", options.recheck, options.recheck >= 0, "be >= 0")
    check("difficulty.recheck", options.recheck, not options.recheck or drop is not None, "be 0 without difficulty.drop_solved")
    check("difficulty.target", target, target is None or 0 <= target <= 1, "be in [0, 1] or None")
    check("difficulty.width", options.width, options.width > 0, "be > 0")
    check("difficulty.boost", options.boost, 1 <= options.boost < math.inf, "be >= 1 and finite")
    check("difficulty.unsolved", options.unsolved, 0 < options.unsolved <= 1, "be in (0, 1]")
    check("difficulty.min_group", options.min_group, 2 <= options.min_group <= size, f"be in [2, rollout.group_size = {size}]")
    check("difficulty.decay", options.decay, 0 <= options.decay < 1, "be in [0, 1)")
    rounds = config.rollout.refill_rounds
    check("rollout.refill_rounds", rounds, not rounds or options.boost == 1, "be 0 with difficulty.boost, whose groups differ in size")


def _check_embedded(config: TrainConfig) -> None:
    """An embedded task renders its own prompts; the options of rows may still be those of what is evaluated on."""
    data, evaluation = config.data, config.eval
    if not data.train.startswith(PREFIX):
        return
    evaluates_rows = bool(evaluation.suites) or not (evaluation.data or PREFIX).startswith(PREFIX)
    for name in ("revision",) if evaluates_rows else ("revision", *OF_ROWS):
        value, default = getattr(data, name), getattr(DataConfig, name)
        check(f"data.{name}", value, value == default, f"be its default ({default}) for data.train {data.train}, which does not read it")


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
