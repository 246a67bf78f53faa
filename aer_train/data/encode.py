"""From a prompt's text to its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aer_train.types import Prompt


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Return the prompt's tokens; see `encode_prompts`."""
    return encode_prompts(tokenizer, [prompt])[0]


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the tokens of each prompt.

    A rendered chat template has all its special tokens, as with `apply_chat_template(tokenize=True)`. Other text gets those that the
    tokenizer puts in front, unless it begins with them, and none behind: a prompt is not finished.

    Raises:
        ValueError - the tokenizer lacks a character, or a prompt has no tokens.
    """
    found = encode_texts(tokenizer, prompts)
    if not all(found):
        raise ValueError(f"prompts must have at least one token, got none in that of id {prompts[found.index([])].id!r}")
    return found


def encode_texts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """As `encode_prompts`, but a prompt may have no tokens."""
    texts = _encode(tokenizer, [prompt.text for prompt in prompts], special=False)
    plain = [place for place, prompt in enumerate(prompts) if not prompt.chat]
    whole = _encode(tokenizer, [prompts[place].text for place in plain], special=True)
    for place, tokens in zip(plain, whole, strict=True):
        texts[place] = _with_front(texts[place], tokens) if texts[place] or not tokens else _front(tokenizer)
    return texts


def _front(tokenizer: Any) -> list[int]:
    """What the tokenizer puts in front, seen on another text: around an empty one nothing tells it from what comes behind."""
    (text,), (whole,) = (_encode(tokenizer, ["0"], special) for special in (False, True))
    return _with_front(text, whole)[: -len(text)]


def _with_front(text: list[int], whole: list[int]) -> list[int]:
    start = next((place for place in range(len(whole) - len(text) + 1) if whole[place : place + len(text)] == text), 0)
    front = whole[:start]
    return text if text[:start] == front else front + text


def _encode(tokenizer: Any, texts: list[str], special: bool) -> list[list[int]]:
    """Encode all texts in one call, which is several times as fast as one by one."""
    if not texts:
        return []
    try:
        found = tokenizer(texts, add_special_tokens=special, return_attention_mask=False, return_token_type_ids=False)
        return list(found["input_ids"])
    except Exception as error:  # tokenizers has no class of its own for a character that it lacks
        if len(texts) == 1:
            raise ValueError(f"model.name must have a tokenizer that can read the prompts, got {texts[0][:60]!r}: {error}") from error
        return [tokens for text in texts for tokens in _encode(tokenizer, [text], special)]  # finds the one to name
