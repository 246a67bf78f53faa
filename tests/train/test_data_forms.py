"""The forms in which datasets come: files, encodings, columns in columns, messages, alternatives, rows without an answer."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from aer_train.config.checks import check_config
from aer_train.config.tree import DataConfig, TrainConfig
from aer_train.data.columns import column, column_names, messages_of
from aer_train.data.files import file_format, read_file
from aer_train.data.prompts import load_prompts
from aer_train.data.render import dated
from aer_train.model import Policy

ROWS = [{"problem": "1+2=?", "answer": "3", "id": "a"}, {"problem": "20*3=?", "answer": "60", "id": "b"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
BOM = b"\xef\xbb\xbf"
CHAT = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"

SAME_ROWS = {
    "a.jsonl": LINES.encode(),
    "crlf.jsonl": LINES.replace("\n", "\r\n").encode(),
    "bom.jsonl": BOM + LINES.encode(),
    "a.jsonl.gz": gzip.compress(LINES.encode()),
    "bom.jsonl.bz2": bz2.compress(BOM + LINES.encode()),
    "list.json": json.dumps(ROWS, indent=2).encode(),
    "bom.json": BOM + json.dumps(ROWS).encode(),
    "lines.json": LINES.encode(),
    "a.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "a.csv": b"problem,answer,id\n1+2=?,3,a\n20*3=?,60,b\n",
    "quoted.csv": BOM + b'id,"problem",answer\r\na,"1+2=?","3"\r\nb,20*3=?,60\r\n',
    "a.csv.gz": gzip.compress(b"problem,answer,id\n1+2=?,3,a\n20*3=?,60,b\n"),
}


@pytest.mark.parametrize("name", SAME_ROWS)
def test_the_same_rows_in_every_form(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(SAME_ROWS[name])
    assert read_file(tmp_path / name) == ROWS


def test_text_stays_as_it_is(tmp_path: Path) -> None:
    """Neither does a line separator of Unicode end a row, nor becomes a cell a number, a date or a truth value."""
    (tmp_path / "a.jsonl").write_text('{"problem": "a\u2028b\u0085c"}\n', encoding="utf-8")
    assert read_file(tmp_path / "a.jsonl") == [{"problem": "a\u2028b\u0085c"}]
    (tmp_path / "a.csv").write_text('problem,answer\n"two\nlines, ""quoted""",007\nx,1.50\ny,2026-11-29\nz,true\nlong,\n')
    assert [row["answer"] for row in read_file(tmp_path / "a.csv")] == ["007", "1.50", "2026-11-29", "true", None]
    assert read_file(tmp_path / "a.csv")[0]["problem"] == 'two\nlines, "quoted"'
    (tmp_path / "wide.csv").write_text(f"problem\n{'x' * 200_000}\n")
    assert len(read_file(tmp_path / "wide.csv")[0]["problem"]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("latin1.jsonl", '{"problem": "x"}\n{"problem": "ü"}'.encode("latin-1"), "must be UTF-8, got byte 0xfc in line 2"),
        ("utf16.json", json.dumps(ROWS).encode("utf-16"), "must be UTF-8, got byte 0xff in line 1"),
        ("latin1.csv", "problem,answer\nü,1".encode("latin-1"), "must be UTF-8, got byte 0xfc in line 2"),
        ("no.jsonl.gz", b"plain text", "must be a file that can be read"),
        ("cut.jsonl.gz", gzip.compress(LINES.encode() * 99, mtime=0)[:60], "must be a file that can be read"),
        ("no.json", b"[{]", "must be a list of JSON objects, or one in each line, got"),
        ("numbers.json", b"[1, 2]", "must be a JSON object, got int"),
        ("wide.csv", b"a,b\n1,2\n1,2,3\n", "line 3 must have 2 cells"),
        ("open.csv", b'a,b\n1,"2\n', "must be CSV, got"),
        ("twice.csv", b"problem,answer,problem\n1,2,3\n", "column of .*twice.csv must be there once, got 'problem' twice"),
        ("twice.jsonl", b'{"a": 1}\n{"a": 1, "a": 2}', "line 2 must be a JSON object, got: key must be there once, got 'a' twice"),
        ("twice.json", b'[{"a": {"b": 1, "b": 1}}]', "key must be there once, got 'b' twice"),
        ("empty.csv", b"problem,answer\n", "must hold at least one row"),
    ],
)
def test_what_is_wrong_is_told_with_the_file(policy: Policy, tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=match) as caught:
        load_prompts(DataConfig(), policy.tokenizer, str(tmp_path / name), "train")
    assert name in str(caught.value)


def test_columns_without_a_name_may_be_several(policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("problem,answer,,\n1+1,2,,\n")
    assert [p.text for p in load_prompts(DataConfig(), policy.tokenizer, str(tmp_path / "a.csv"), "train").prompts] == ["1+1"]


def test_names_of_files() -> None:
    names = ["a.jsonl", "a.b.csv", "a.json.zst", "data/*.csv.gz", "a.parquet", "a.parquet.gz", "org/name", "a.gz", "builtin:x:0.25"]
    assert [file_format(name) for name in names] == [".jsonl", ".csv", ".json", ".csv", ".parquet", None, None, None, None]


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def test_columns_in_columns() -> None:
    row = {"reward_model": {"ground_truth": "4", "style": None}, "a.b": 1, "a": {"b": 2}, "id": None}
    assert [column(row, name) for name in ("reward_model.ground_truth", "a.b", "id")] == ["4", 1, None]
    assert column_names(row) == ["a.b", "a.b", "id", "reward_model.ground_truth", "reward_model.style"]


def test_prompts_as_messages(policy: Policy, tmp_path: Path) -> None:
    """As RL datasets have them: columns in columns, a system message of their own, contents in parts, null keys of an arrow table."""
    policy.tokenizer.chat_template = CHAT
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "2=?"}]
    rows = [
        {"prompt": [{"role": "user", "content": "1+2=?", "tool_calls": None}], "reward_model": {"ground_truth": 3}},
        {"prompt": [{"role": "system", "content": "own"}, {"role": "user", "content": parts}], "reward_model": {"ground_truth": "3"}},
    ]
    source, options = write(tmp_path, rows), {"prompt_column": "prompt", "answer_column": "reward_model.ground_truth"}

    def texts(**more: Any) -> list[str]:
        return [p.text for p in load_prompts(DataConfig(**options, **more), policy.tokenizer, source, "train").prompts]

    assert texts(chat=True) == ["user:1+2=?;assistant:", "system:own;user:1+2=?;assistant:"]
    assert texts(chat=True, system="s", template="{problem}!") == 2 * ["system:s;user:1+2=?!;assistant:"]
    with pytest.raises(ValueError, match=r"data.chat must be True for prompts that are lists of messages, got False \(.*rows.jsonl\)"):
        texts()
    with pytest.raises(ValueError, match=r"data.answer_column must be a column of .* \(prompt, reward_model.ground_truth\), got 'gold'"):
        load_prompts(DataConfig(prompt_column="prompt", answer_column="gold"), policy.tokenizer, source, "train")


@pytest.mark.parametrize(
    "value",
    [
        [{"role": "user", "content": "1"}, {"role": "assistant", "content": "the answer"}],
        [{"role": "user"}],
        [{"content": "1"}],
        [{"role": "user", "content": [{"type": "image"}]}],
        ["1"],
        [],
    ],
    ids=["ends with the assistant", "no content", "no role", "a picture", "texts", "empty"],
)
def test_what_is_no_conversation_to_go_on_with(value: Any) -> None:
    assert messages_of(value) is None


def test_rows_without_an_answer_are_dropped_and_counted(policy: Policy, tmp_path: Path) -> None:
    rows = [*ROWS, {"problem": "1", "answer": None}, {"problem": "1"}, {"problem": "1", "answer": float("nan")}, {"problem": None, "answer": "1"},
            {"problem": "1", "answer": []}, {"problem": "5=?", "answer": "5"}]  # fmt: skip
    said: list[str] = []
    source = write(tmp_path, rows)
    found = load_prompts(DataConfig(), policy.tokenizer, source, "train", message=said.append)
    assert [prompt.id for prompt in found.prompts] == ["a", "b", "7"], "numbers are those of the file"
    assert said == [f"{source}: 5 of 8 rows dropped, which have no problem or no answer (first: row 2)"]


def test_alternatives(policy: Policy, tmp_path: Path) -> None:
    def load(answer: Any) -> Any:
        return load_prompts(DataConfig(), policy.tokenizer, write(tmp_path, [{"problem": "1", "answer": answer}]), "train")

    assert load(["1/2", 0.5, None]).prompts[0].golds == ("1/2", "0.5")
    digests = {load(answer).origin["digest"] for answer in ("1/2", ["1/2", "0.5"], ["1/2", "1"], ["1/2"])}
    assert len(digests) == 3, "what is right is part of the digest; a list of one is its answer"


def test_arguments_of_the_template(policy: Policy, tmp_path: Path) -> None:
    policy.tokenizer.chat_template = "{{ messages[-1].content }}{% if enable_thinking is false %}-{% endif %}{{ digits }}"
    source = write(tmp_path, ROWS[:1])

    def text(*arguments: str, chat: bool = True) -> str:
        return load_prompts(DataConfig(chat=chat, template_args=arguments), policy.tokenizer, source, "train").prompts[0].text

    assert [text(), text("enable_thinking=false"), text("enable_thinking=true", "digits=12")] == ["1+2=?", "1+2=?-", "1+2=?12"]
    with pytest.raises(ValueError, match=r"data.template_args must name what the chat template reads, got thinking, which is not in it"):
        text("thinking=false")
    with pytest.raises(ValueError, match=r"data.template_args must be empty without data.chat, got digits=1"):
        text("digits=1", chat=False)
    for argument, rule in (("tokenize=true", "leave the messages"), ("no value", "each be name=value")):
        with pytest.raises(ValueError, match=rf"data.template_args must {rule}"):
            check_config(TrainConfig(data=DataConfig(template_args=(argument,))))


def test_a_template_that_refuses_is_one_line(policy: Policy, tmp_path: Path) -> None:
    policy.tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ messages[0].content }}"
    )
    source = write(tmp_path, ROWS)
    with pytest.raises(
        ValueError, match=r"data.system must suit the chat template \(else put it into data.template\), got 'Be brief.': .*no system"
    ):
        load_prompts(DataConfig(chat=True, system="Be brief."), policy.tokenizer, source, "train")
    policy.tokenizer.chat_template = "{{ messages[7].content }}"
    with pytest.raises(
        ValueError, match=r"data.chat must be used with prompts that the chat template takes, got messages of user: UndefinedError"
    ):
        load_prompts(DataConfig(chat=True), policy.tokenizer, source, "train")


def test_the_date_of_a_template_is_an_option(policy: Policy, tmp_path: Path) -> None:
    policy.tokenizer.chat_template = "{{ strftime_now('%d%m%Y%H') }}={{ messages[-1].content }}"
    source, config = write(tmp_path, ROWS[:1]), DataConfig(chat=True, date="2026-02-03")
    assert load_prompts(config, policy.tokenizer, source, "train").prompts[0].text == "0302202600=1+2=?"
    assert dated(config, policy.tokenizer) and not dated(DataConfig(), policy.tokenizer)
    policy.tokenizer.chat_template = CHAT
    assert not dated(config, policy.tokenizer)
    with pytest.raises(ValueError, match=r"data.date must be a date such as 2026-11-29, or None, got yesterday"):
        check_config(TrainConfig(data=DataConfig(date="yesterday")))
