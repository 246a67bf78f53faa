import json
from collections import Counter
from pathlib import Path

import pytest

from aer_train.config.tree import DataConfig, EvalConfig
from aer_train.data.columns import gold_answers
from aer_train.data.encode import encode_prompt
from aer_train.data.prompts import load_eval_sets, load_prompts, order_at, overlap
from aer_train.model import Policy
from aer_train.seeds import generator, sample_seed
from aer_train.types import Prompt

ROWS = [
    {"problem": "1+2=?", "answer": "3", "level": 1, "id": "a"},
    {"problem": "20*3=?", "answer": "60", "level": 2, "id": "b"},
    {"problem": "12345678", "answer": "0", "level": 2, "id": "c"},
]


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def load(policy: Policy, source: str, limit: int | None = None, **options: object) -> list[Prompt]:
    return load_prompts(DataConfig(**options), policy.tokenizer, source, "train", limit=limit).prompts


def test_jsonl_and_parquet_give_the_same_prompts(policy: Policy, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    source = write(tmp_path / "rows.jsonl", ROWS)
    found = load(policy, source, tier_column="level", template="={problem}")
    assert found == load(policy, str(tmp_path / "rows.parquet"), tier_column="level", template="={problem}")
    assert found[:2] == [Prompt("a", "=1+2=?", "3", "1"), Prompt("b", "=20*3=?", "60", "2")]
    assert load(policy, source, limit=1) == [Prompt("a", "1+2=?", "3", "all")]


def test_a_pattern_reads_its_files_in_order(policy: Policy, tmp_path: Path) -> None:
    for name, row in (("b.jsonl", ROWS[1]), ("a.jsonl", ROWS[0])):
        write(tmp_path / name, [row])
    assert [p.id for p in load(policy, str(tmp_path / "*.jsonl"))] == ["a", "b"]
    with pytest.raises(ValueError, match=r"data must name an existing file, got .*c\*.jsonl"):
        load(policy, str(tmp_path / "c*.jsonl"))


def test_gold_answers() -> None:
    """A float without a fraction is the whole number that it was before somebody's data frame made it a float. Lists are alternatives."""
    given = [204, 27.0, -1.0, 0.5, 1e-05, 1e22, ["$2$"], [3], " 7", ["1", 2.0, "1", None], [["1"], "2"]]
    expected = ["204", "27", "-1", "0.5", "1e-05", "1" + 22 * "0", "$2$", "3", " 7"]
    assert [gold_answers(value) for value in given] == [*((text,) for text in expected), ("1", "2"), ("1", "2")]
    assert [gold_answers(value) for value in (True, float("inf"), None, [], {"a": 1}, ["1", {}], ["1", True])] == 7 * [None]


def test_repeated_prompts_are_counted(policy: Policy, tmp_path: Path) -> None:
    rows = [*ROWS, {"problem": "1 + 2 = ?", "answer": "3", "id": "d"}, {"problem": "$20*3$=?", "answer": "61", "id": "e"}]
    source, messages = write(tmp_path / "rows.jsonl", rows), []
    load_prompts(DataConfig(), policy.tokenizer, source, "train", message=messages.append)
    assert messages == [f"{source}: 2 of 5 prompts repeat an earlier one (first: d), 1 of them with another answer"]


def test_overlap_of_training_and_evaluation() -> None:
    held_out = [Prompt("x", "What is  $1+2$?", "3"), Prompt("y", "What is 1+3?", "4")]
    assert overlap([Prompt("a", "what is 1+2?", "3"), Prompt("b", "2", "2")], held_out) == held_out[:1]


def test_where_prompts_come_from_is_recorded(policy: Policy, tmp_path: Path) -> None:
    def origin(rows: list[dict[str, object]]) -> dict[str, object]:
        return load_prompts(DataConfig(), policy.tokenizer, write(tmp_path / "rows.jsonl", rows), "train").origin

    found = origin(ROWS)
    assert found | {"name": "", "source": str(tmp_path / "rows.jsonl"), "revision": None, "problems": 3} == found
    assert (
        origin(ROWS) == found
        and len({o["digest"] for o in (found, origin(ROWS[:2]), origin([{**ROWS[0], "answer": "4"}, *ROWS[1:]]))}) == 3
    )


COMMIT = "0123456789" * 4


@pytest.fixture
def cached_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """org/toy:main with a test split, as an earlier download has left it, and no way to the hub."""
    import datasets.config
    from datasets.packaged_modules.json.json import Json

    file = write(tmp_path / "toy.jsonl", [{"question": "1+1", "answer": "so 2\n#### 2"}])
    Json(
        cache_dir=str(tmp_path), dataset_name="org___toy", hash=COMMIT, config_name="main", data_files={"test": [file]}
    ).download_and_prepare()
    next((tmp_path / "org___toy").glob("main-*")).rename(tmp_path / "org___toy" / "main")
    folder = tmp_path / "org___toy" / "main" / "0.0.0" / COMMIT
    (folder / "org___toy-test.arrow").rename(folder / "toy-test.arrow")
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"dataset_name": "toy"}))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)


@pytest.mark.usefixtures("cached_hub_dataset")
def test_the_commit_of_a_hub_dataset_is_recorded(policy: Policy) -> None:
    data = DataConfig(train="org/toy:main", prompt_column="question", revision=COMMIT)
    found = load_prompts(data, policy.tokenizer, data.train, "test")
    assert found.prompts == [Prompt("0", "1+1", "so 2\n#### 2")] and found.origin["revision"] == COMMIT
    with pytest.raises(ValueError, match=f"org/toy:main must be at revision {40 * 'f'}, got {COMMIT} from the cache: the hub could not be"):
        load_prompts(data, policy.tokenizer, data.train, "test", revision=40 * "f")
    with pytest.raises(ValueError, match=r"got 'org/toy:main' \(split 'train'\): Unknown split"):
        load_prompts(data, policy.tokenizer, data.train, "train")
    assert load_eval_sets(EvalConfig(data="org/toy:main"), data, policy.tokenizer)[0].origin == found.origin
    with pytest.raises(ValueError, match=f"must be at revision {40 * 'e'}"):
        load_eval_sets(EvalConfig(data="org/toy:main"), DataConfig(train="org/toy", revision=40 * "e"), policy.tokenizer)


def test_the_row_number_is_the_default_id(policy: Policy, tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "id"} for row in ROWS]
    assert [p.id for p in load(policy, write(tmp_path / "rows.jsonl", rows))] == ["0", "1", "2"]


def test_long_prompts_are_dropped_and_counted(policy: Policy, tmp_path: Path) -> None:
    source, messages = write(tmp_path / "rows.jsonl", ROWS), []
    config = DataConfig(max_prompt_tokens=6)
    assert [p.id for p in load_prompts(config, policy.tokenizer, source, "train", message=messages.append).prompts] == ["a", "b"]
    assert messages == [f"{source}: 1 of 3 prompts dropped (data.max_prompt_tokens)"]
    with pytest.raises(ValueError, match=r"data.max_prompt_tokens must leave some prompts, got 2: every prompt of"):
        load(policy, source, max_prompt_tokens=2)


def test_prompts_without_tokens_are_dropped_and_counted(policy: Policy, tmp_path: Path) -> None:
    empty = {"problem": "", "answer": "3", "id": "e"}
    source, messages = write(tmp_path / "rows.jsonl", [empty, *ROWS]), []
    (found,) = load_eval_sets(EvalConfig(data=source), DataConfig(max_prompt_tokens=6), policy.tokenizer, message=messages.append)
    assert [p.id for p in found.prompts] == ["a", "b"]
    assert messages == [
        f"{source}: 1 of 4 prompts dropped, which have no tokens (first: e)",
        f"{source}: 1 of 4 prompts dropped (data.max_prompt_tokens)",
    ]
    with pytest.raises(ValueError, match=r"data.template must give prompts with tokens, got none in any prompt of .*: '{problem}'"):
        load(policy, write(tmp_path / "rows.jsonl", [empty]))


def test_embedded_prompts_have_the_limit_of_tokens_too(policy: Policy) -> None:
    messages: list[str] = []
    whole = load(policy, "builtin:chains")
    lengths = sorted(len(encode_prompt(policy.tokenizer, p)) for p in whole)
    with pytest.raises(ValueError, match=r"data.max_prompt_tokens must leave some prompts, got 1: every prompt of builtin:chains is"):
        load(policy, "builtin:chains", max_prompt_tokens=1)
    limit = lengths[-1] - 1
    found = load_prompts(DataConfig(max_prompt_tokens=limit), policy.tokenizer, "builtin:chains", "train", message=messages.append)
    assert len(found.prompts) == sum(length <= limit for length in lengths) < len(whole) and found.longest <= limit and len(messages) == 1


def test_chat_template(policy: Policy, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", ROWS[:1])
    with pytest.raises(ValueError, match=r"data.chat must be False for a tokenizer without a chat template"):
        load(policy, source, chat=True)
    policy.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    found = load(policy, source, chat=True, system="short", template="{problem}!")
    assert found[0].text == "system:short;user:1+2=?!;assistant:"
    with pytest.raises(ValueError, match=r"data.system must be None without data.chat, got 'short'"):
        load(policy, source, system="short")


@pytest.mark.parametrize(
    ("rows", "options", "match"),
    [
        ([], {}, "must hold at least one row, got an empty dataset"),
        (ROWS, {"prompt_column": "question"}, r"data.prompt_column must be a column of .* \(answer, id, level, problem\), got 'question'"),
        (ROWS, {"answer_column": "gold"}, "data.answer_column must be a column of"),
        (ROWS, {"tier_column": "tier"}, "data.tier_column must be a column of"),
        ([{"problem": "1", "answer": ["1", True]}], {}, r"answer of row 0 of .* must be text, a finite number or a list of them, got list"),
        ([{"problem": "1", "answer": None}], {}, r"data.answer_column must hold an answer in some rows of .*, got none in 'answer'"),
        (ROWS, {"prompt_column": "level"}, r"prompt of row 0 of .* must be text, or messages of text that end with .*, got int \(1\)"),
        (ROWS, {"template": "Solve it."}, r"data.template must contain \{problem\}, got 'Solve it.'"),
    ],
)
def test_clear_errors(policy: Policy, tmp_path: Path, rows: list[dict[str, object]], options: dict[str, str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load(policy, write(tmp_path / "rows.jsonl", rows), **options)


def test_a_character_that_the_tokenizer_lacks() -> None:
    from aer_train.tasks.warmup import build_tokenizer

    with pytest.raises(ValueError, match=r"model\.name must have a tokenizer that can read the prompts, got 'Find x'"):
        encode_prompt(build_tokenizer(), Prompt("0", "Find x", ""))


def test_unreadable_files(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data must name an existing file, got .*missing.jsonl"):
        load(policy, str(tmp_path / "missing.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"problem": "1"}\n{"problem"\n')
    with pytest.raises(ValueError, match=r"bad.jsonl line 2 must be a JSON object, got"):
        load(policy, str(tmp_path / "bad.jsonl"))
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"list.jsonl line 1 must be a JSON object, got list"):
        load(policy, str(tmp_path / "list.jsonl"))
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"bad.parquet must be a parquet file"):
        load(policy, str(tmp_path / "bad.parquet"))


def test_each_prompt_comes_once_an_epoch() -> None:
    prompts = [Prompt(str(i), "", "") for i in range(10)]
    stream = [prompts[p].id for step in range(10) for p in order_at(len(prompts), 7, 3 * step, 3)]
    for epoch in range(3):
        assert Counter(stream[10 * epoch : 10 * epoch + 10]) == Counter(str(i) for i in range(10))
    assert stream[:10] != stream[10:20]
    assert [prompts[p].id for p in order_at(len(prompts), 7, 12, 3)] == stream[12:15]
    assert [prompts[p].id for p in order_at(len(prompts), 7, 0, 25)] == stream[:25]
    assert [prompts[p].id for p in order_at(len(prompts), 8, 0, 10)] != stream[:10]


def test_seeds_are_stable_and_distinct() -> None:
    assert sample_seed(0, "train", 3) == 17418007991894096422
    seeds = {sample_seed(*parts) for parts in [(1, 2), (12,), ("1", 2), (1, "2"), ("1", "2"), (2, 1), (1, 2, 0)]}
    assert len(seeds) == 7 and all(0 <= s < 2**64 for s in seeds)
    assert generator(1).random(2).tolist() == generator(1).random(2).tolist() != generator(1 + 2**33).random(2).tolist()
