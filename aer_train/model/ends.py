"""What ends a response, and what of it is graded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aer_train.model.policy import Policy
from aer_train.types import Sample

ANSWER = "answer7"
"""What the assistant says where a template is looked into."""


def with_stops(policy: Policy, stops: Sequence[str]) -> Policy:
    """Return the policy whose responses end with these texts, too: tokens of their own by their ids, others wherever they are written."""
    tokens, texts = set[int](), [*policy.stops]
    for stop in stops:
        ids = policy.tokenizer.encode(stop, add_special_tokens=False)
        if len(ids) == 1 and ids[0] in own_tokens(policy.tokenizer):
            tokens.add(ids[0])
        else:
            texts.append(stop)
    return replace(policy, eos_ids=policy.eos_ids | tokens, stops=tuple(dict.fromkeys(texts)))


def own_tokens(tokenizer: Any) -> set[int]:
    """Return the tokens that ordinary text does not have: those that were added to the vocabulary, space aside."""
    return {id for text, id in tokenizer.get_added_vocab().items() if text.strip()} | set(tokenizer.all_special_ids)


def turn_end(tokenizer: Any) -> str | None:
    """Return what the chat template writes at the end of an assistant's turn; None where there is no template, or no such text.

    It is the first token of its own behind the last answer of a conversation, or all the text there, if it has no such token.
    """
    if not tokenizer.chat_template:
        return None
    user, answer = {"role": "user", "content": "question"}, {"role": "assistant", "content": ANSWER}
    try:
        asked, waiting, answered = (
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=waits)
            for messages, waits in (([user], False), ([user], True), ([user, answer], False))
        )
    except Exception:  # a template is a program: the first prompt will show what it does not like
        return None
    _, said, tail = answered.rpartition(ANSWER)
    if not said:
        return None
    own = own_tokens(tokenizer)
    token = next((id for id in tokenizer.encode(tail, add_special_tokens=False) if id in own), None)
    if token is not None:
        return tokenizer.convert_ids_to_tokens(token)
    return tail.strip() or None if waiting != asked else None  # a template that always asks on would have its question there


def response_text(policy: Policy, tokens: Sequence[int]) -> str:
    """Return what is graded of a response: all its tokens, such as those around thinking, but ends and padding."""
    hidden = policy.eos_ids | {policy.tokenizer.pad_token_id}
    return policy.tokenizer.decode([token for token in tokens if token not in hidden])


def cut(policy: Policy, sample: Sample) -> Sample:
    """Return the sample up to the token that completes the first of `policy.stops`; its text ends before that."""
    end = text_end(policy.stops, sample.text)
    if end is None:
        return sample
    low, high = 1, len(sample.tokens)  # as many tokens as are needed
    while low < high:
        middle = (low + high) // 2
        if text_end(policy.stops, response_text(policy, sample.tokens[:middle])) is None:
            low = middle + 1
        else:
            high = middle
    return replace(sample, tokens=sample.tokens[:low], logprobs=sample.logprobs[:low], text=sample.text[:end], finished=True)


def text_end(stops: Sequence[str], text: str) -> int | None:
    """Return where the first of the stops begins in a text; None where there is none."""
    return min((place for place in map(text.find, stops) if place >= 0), default=None)
