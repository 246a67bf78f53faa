"""Where a response ends, in both kinds of backend, and what of it is graded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aer_train.config.checks import check_config
from aer_train.config.tree import ModelConfig, RolloutConfig, TrainConfig
from aer_train.model import Policy, load_policy
from aer_train.model.ends import own_tokens, response_text, turn_end, with_stops
from aer_train.rollout.engine import Completion, EngineRollout
from aer_train.rollout.hf import HFRollout
from aer_train.rollout.probe import Probe
from aer_train.types import Prompt
from aer_train.verify.extract import extract
from tests.train.conftest import save_byte_model
from tests.train.test_engine import FakeEngine
from tests.train.test_prompt_tokens import CHATML

CPU = torch.device("cpu")
PROMPTS = [Prompt(str(i), text, "") for i, text in enumerate(["What is 2+2?", "x"])]
GPT_OSS = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}{% if loop.last and m.role == 'assistant' %}<|return|>"
    "{% else %}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def byte_policy(folder: Path, template: str | None, added: list[str], special: bool = True) -> Policy:
    from transformers import AutoTokenizer

    save_byte_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(added, special_tokens=special)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return load_policy(ModelConfig(name=str(folder)), CPU)


@pytest.mark.parametrize("special", [True, False], ids=["special", "added"])
@pytest.mark.parametrize(
    ("template", "added", "end"),
    [
        (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
        (CHATML.replace("<|im_end|>\n", " <|im_end|>"), ["<|im_end|>"], "<|im_end|>"),
        (CHATML.replace("{{ m.content }}", "{{ m.content | trim }}\n"), ["<|im_end|>"], "<|im_end|>"),
        (GPT_OSS, ["<|start|>", "<|end|>", "<|return|>", "<|message|>"], "<|return|>"),
        ("{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}", [], "<eos>"),
    ],
    ids=["ChatML", "space before", "line before", "another end for the last turn", "eos"],
)
def test_a_template_s_end_of_a_turn(tmp_path: Path, template: str, added: list[str], end: str, special: bool) -> None:
    policy = byte_policy(tmp_path, template, added, special)
    assert turn_end(policy.tokenizer) == end
    assert policy.eos_ids == {1, policy.tokenizer.convert_tokens_to_ids(end)} and policy.stops == ()


@pytest.mark.parametrize(
    ("template", "stops"),
    [
        (CHATML, ("<|im_end|>",)),
        (None, ()),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", ()),
        ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>", ()),
        ("{{ raise_exception('no') }}", ()),
        ("{{ messages[0].content }}", ()),
    ],
    ids=["written in ordinary characters", "no template", "lines", "asks on and on", "refuses", "hides the answer"],
)
def test_templates_without_a_token_for_it(tmp_path: Path, template: str | None, stops: tuple[str, ...]) -> None:
    policy = byte_policy(tmp_path, template, [])
    assert policy.eos_ids == {1} and policy.stops == stops


def test_stops_are_tokens_or_texts(tmp_path: Path) -> None:
    policy = byte_policy(tmp_path, None, ["<|im_end|>", "\n\n"], special=False)
    assert own_tokens(policy.tokenizer) == {0, 1, policy.tokenizer.convert_tokens_to_ids("<|im_end|>")}
    found = with_stops(policy, ["<|im_end|>", "\n\n", "x", "Question:", "x"])
    assert found.eos_ids == {1, policy.tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert found.stops == ("\n\n", "x", "Question:"), "ordinary text ends a response whatever tokens it is made of"
    with pytest.raises(ValueError, match=r"rollout.stop must hold no empty text, got \['a', ''\]"):
        check_config(TrainConfig(rollout=RolloutConfig(stop=("a", ""))))


@pytest.fixture
def digits(policy: Policy) -> Policy:
    """Of the tiny random model over characters, whose responses hold all of them."""
    return policy


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["7", "12", "1=", "9*"])
def test_a_text_ends_responses_where_it_is_first_written(digits: Policy, stop: str) -> None:
    """The same draws with and without it: what is before the stop is unbent, and a stop is never missed."""
    prompts = [Prompt(str(i), text, "") for i, text in enumerate(["12=?", "7", "345+6=?", "98"])]
    options: dict[str, Any] = {"max_new_tokens": 40, "batch_size": 13}
    free = HFRollout(digits, RolloutConfig(**options)).generate(prompts, 8, (0,))
    cut = HFRollout(digits, RolloutConfig(stop=(stop,), **options)).generate(prompts, 8, (0,))
    ended = 0
    for a, b in zip(free, cut, strict=True):
        place = a.text.find(stop)
        assert b.logprobs == pytest.approx(a.logprobs[: len(b.tokens)], abs=1e-5)
        if place < 0:
            assert (a.tokens, a.text, a.finished) == (b.tokens, b.text, b.finished)
        else:
            ended += 1
            assert b.text == a.text[:place] and b.finished and b.tokens == a.tokens[: len(b.tokens)]
            assert stop in response_text(digits, b.tokens) and stop not in response_text(digits, b.tokens[:-1])
    assert ended > 0


def test_an_engine_s_responses_end_there_too(digits: Policy) -> None:
    prompts = [Prompt("0", "12=?", "12")]
    rollout = EngineRollout(digits, RolloutConfig(max_new_tokens=9, stop=("73", "=")), FakeEngine(digits), Probe(digits, prompts))
    rollout.sync(0)
    tokenizer = digits.tokenizer
    answers = ["1473", "14", "173=5", "1=73", "55"]
    rollout.engine.complete = lambda requests: iter(
        [[Completion(place, tokenizer.encode(text), [-0.5 * i for i in range(len(text))]) for place, text in enumerate(answers)]]
    )
    found = rollout.generate(prompts, 5, (0,))
    assert [s.text for s in found] == ["14", "14", "1", "1", "55"] and [s.finished for s in found] == [True, False, True, True, False]
    assert [s.tokens for s in found] == [tokenizer.encode(text) for text in ("1473", "14", "173", "1=", "55")]
    assert all(len(s.logprobs) == len(s.tokens) for s in found)


def test_a_stop_of_several_bytes_in_tokens_of_their_own(tmp_path: Path) -> None:
    """Each token is a byte: only all of them together are a character."""
    policy = byte_policy(tmp_path, None, [])
    ids = policy.tokenizer.encode("ab\u00e9 question\u203d more")
    rollout = EngineRollout(policy, RolloutConfig(max_new_tokens=40, stop=("\u203d",)), FakeEngine(policy), Probe(policy, PROMPTS))
    rollout.sync(0)
    rollout.engine.complete = lambda requests: iter([[Completion(0, ids, [0.0] * len(ids))]])
    (sample,) = rollout.generate(PROMPTS[:1], 1, (0,))
    assert sample.text == "ab\u00e9 question" and policy.tokenizer.decode(sample.tokens) == "ab\u00e9 question\u203d"


PAIRS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<seed:think>", "</seed:think>"),
)


@pytest.mark.parametrize("special", [True, False], ids=["special", "ordinary"])
@pytest.mark.parametrize(("begin", "end"), PAIRS)
def test_marks_of_thinking_reach_the_grader(tmp_path: Path, begin: str, end: str, special: bool) -> None:
    policy = byte_policy(tmp_path, CHATML, [begin, end, "<|im_end|>", "<|im_start|>"], special)
    encode = policy.tokenizer.encode
    text = rf"{begin} Maybe \boxed{{41}}? No. {end} It is \boxed{{42}}."
    assert response_text(policy, encode(text + "<|im_end|>")) == text and extract(text) == ["42"]
    assert response_text(policy, [*encode(text), 0, 0]) == text, "padding says nothing"
    assert extract(response_text(policy, encode(rf"{begin} \boxed{{42}}?"))) == []
