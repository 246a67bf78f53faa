"""From problems to what the model is given: data.template, and the tokenizer's chat template around it."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime
from typing import Any

from aer_train.config.named import named_values
from aer_train.config.tree import DataConfig

Messages = list[dict[str, Any]]
Problem = str | Messages
Rendered = tuple[str, Messages | None]
"""What the model is given, and the same as a conversation where a chat template made it."""

UNUSED_TEMPLATE = "the tokenizer has a chat template that is not used: an instruct model needs data.chat True"

CLOCK = "strftime_now"
"""What chat templates call to write the date."""


def renderer(config: DataConfig, tokenizer: Any) -> Callable[[Problem], Rendered]:
    """Return the function that renders a problem.

    A problem that is text becomes the user's message, within data.template. One that is a conversation stays as it is: data.template is
    around its last message, and data.system takes the place of its system message.

    Raises:
        ValueError - options of data do not go together, or do not fit the chat template; the function raises it for a problem that it
        cannot render.
    """
    if "{problem}" not in config.template:
        raise ValueError(f"data.template must contain {{problem}}, got {config.template!r}")
    if not config.chat:
        if config.system is not None:
            raise ValueError(f"data.system must be None without data.chat, got {config.system!r}")
        if config.template_args:
            raise ValueError(f"data.template_args must be empty without data.chat, got {' '.join(config.template_args)}")
        return lambda problem: (_plain(config, problem), None)
    template = chat_template(tokenizer)
    if template is None:
        raise ValueError("data.chat must be False for a tokenizer without a chat template, got True")
    arguments = named_values(config.template_args)
    for name in arguments:
        if not re.search(rf"\b{name}\b", template):
            raise ValueError(f"data.template_args must name what the chat template reads, got {name}, which is not in it")
    if CLOCK in template:
        arguments[CLOCK] = datetime.fromisoformat(config.date or today()).strftime

    def render(problem: Problem) -> Rendered:
        messages = _conversation(config, problem)
        try:
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **arguments), messages
        except Exception as error:  # a template is a program
            raise ValueError(_refusal(config, messages, error)) from error

    return render


def chat_template(tokenizer: Any) -> str | None:
    """Return the template that renders conversations without tools; None where there is none."""
    if not tokenizer.chat_template:
        return None
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise ValueError(f"data.chat must be False for a tokenizer without a default chat template, got True: {error}") from error


def unused_template(config: DataConfig, tokenizer: Any) -> bool:
    """Whether the tokenizer has a chat template that the prompts are not rendered with."""
    return not config.chat and bool(tokenizer.chat_template)


def dated(config: DataConfig, tokenizer: Any) -> bool:
    """Whether the prompts hold the date on which they are rendered."""
    return config.chat and CLOCK in (chat_template(tokenizer) or "")


def today() -> str:
    """Return the date as data.date has it."""
    return date.today().isoformat()


def _plain(config: DataConfig, problem: Problem) -> str:
    if not isinstance(problem, str):
        raise ValueError("data.chat must be True for prompts that are lists of messages, got False")
    return config.template.replace("{problem}", problem)


def _conversation(config: DataConfig, problem: Problem) -> Messages:
    messages = [{"role": "user", "content": problem}] if isinstance(problem, str) else problem
    *before, user = messages
    if config.system is not None:
        before = [{"role": "system", "content": config.system}, *(message for message in before if message["role"] != "system")]
    return [*before, {**user, "content": config.template.replace("{problem}", user["content"])}]


def _refusal(config: DataConfig, messages: Messages, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    if config.system is not None:
        return f"data.system must suit the chat template (else put it into data.template), got {config.system!r}: {reason}"
    roles = ", ".join(message["role"] for message in messages)
    return f"data.chat must be used with prompts that the chat template takes, got messages of {roles}: {reason}"
