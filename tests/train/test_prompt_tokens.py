"""Chat prompts are what the tokenizer itself makes of a conversation, whatever it adds to other texts; no prompt is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from aer_train.config.tree import DataConfig
from aer_train.data.encode import encode_prompt, encode_prompts, encode_texts
from aer_train.data.prompts import load_prompts
from aer_train.types import Prompt
from tests.train.conftest import save_byte_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ADDED = ["<s>", "<|im_start|>", "<|im_end|>", "[gMASK]", "<sop>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytes")
    save_byte_model(folder)
    return folder


def make(folder: Path, bos: str | None, single: str, template: str | None) -> Any:
    """A tokenizer over bytes that adds these special tokens to a text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(ADDED, special_tokens=True)
    used = [piece for piece in single.split() if not piece.startswith("$")]
    special = [(piece, tokenizer.convert_tokens_to_ids(piece)) for piece in dict.fromkeys(used)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=special)
    tokenizer.bos_token, tokenizer.chat_template = bos, template
    return tokenizer


KINDS = {
    "nothing": (None, "$A", CHATML),
    "BOS in template and tokenizer": ("<s>", "<s> $A", "<s>" + CHATML),
    "BOS in the tokenizer alone": ("<s>", "<s> $A", CHATML),
    "BOS in the template alone": ("<s>", "$A", "<s>" + CHATML),
    "an EOS behind": (None, "$A <|im_end|>", CHATML),
    "BOS in front and EOS behind": ("<s>", "<s> $A <|im_end|>", "<s>" + CHATML),
    "a prefix that is no BOS": (None, "[gMASK] <sop> $A", "[gMASK]<sop>" + CHATML),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_chat_prompts(folder: Path, tmp_path: Path, kind: tuple[str | None, str, str], system: str | None) -> None:
    tokenizer = make(folder, *kind)
    data = tmp_path / "data.jsonl"
    data.write_text('{"problem": "What is 2+2?", "answer": "4"}\n{"problem": "<s>", "answer": "4"}')
    prompts = load_prompts(DataConfig(chat=True, system=system), tokenizer, str(data), "train").prompts
    first = [] if system is None else [{"role": "system", "content": system}]
    for prompt, problem in zip(prompts, ("What is 2+2?", "<s>"), strict=True):
        messages = [*first, {"role": "user", "content": problem}]
        expected = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert encode_prompt(tokenizer, prompt) == expected


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_plain_prompts(folder: Path, kind: tuple[str | None, str, str]) -> None:
    """What the tokenizer puts in front, once, and nothing behind."""
    tokenizer = make(folder, *kind[:2], None)
    bare = tokenizer.encode("2+2=", add_special_tokens=False)
    front = [tokenizer.convert_tokens_to_ids(piece) for piece in kind[1].split("$A")[0].split()]
    written = "".join(kind[1].split("$A")[0].split())
    assert len(bare) == 4
    assert encode_prompt(tokenizer, Prompt("0", "2+2=", "4")) == front + bare
    assert encode_prompt(tokenizer, Prompt("0", written + "2+2=", "4")) == front + bare, "a template that has them already"
    assert encode_texts(tokenizer, [Prompt("0", "", "4"), Prompt("1", "2+2=", "4")]) == [front, front + bare]


def test_prompts_without_tokens_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="prompts must have at least one token, got none in that of id 'b'"):
        encode_prompts(make(folder, None, "$A", None), [Prompt("a", "2+2=", "4"), Prompt("b", "", "4")])
