import json
import re
from pathlib import Path

import pytest

from aer_train.config.tree import DataConfig, EvalConfig
from aer_train.data.prompts import load_eval_sets
from aer_train.data.suites import SUITES, read_suite
from aer_train.model import Policy
from aer_train.verify import Verifier
from tests.train.problems import GOLD_ANSWERS, row, write_rows


def test_every_suite_is_pinned() -> None:
    assert list(SUITES) == ["aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench", "gsm8k"]
    assert all(re.fullmatch("[0-9a-f]{40}", suite.revision) for suite in SUITES.values())


def test_suites_from_files(policy: Policy, tmp_path: Path) -> None:
    for file, rows in {
        "aime24": [{"id": 60, "problem": "1+1", "answer": 2}],
        "gsm8k_test": [{"problem": "1*1", "answer": "#### 1"}],
    }.items():
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said: list[str] = []
    data, options = DataConfig(prompt_column="other", tier_column="none", template="{problem}="), {"message": said.append}
    config = EvalConfig(data="builtin:countdown", suites=("aime24", "gsm8k"), suite_dir=str(tmp_path), limit=2)
    countdown, aime, gsm8k = load_eval_sets(config, data, policy.tokenizer, **options)
    assert [(p.id, p.text, p.answer, p.tier) for p in aime.prompts] == [("aime24/60", "1+1=", "2", "aime24")]
    assert [(p.id, p.answer, p.tier) for p in gsm8k.prompts] == [("gsm8k/0", "#### 1", "gsm8k")]
    assert [s.name for s in (countdown, aime, gsm8k)] == ["", "aime24", "gsm8k"] and {p.tier for p in countdown.prompts} == {"easy", "hard"}
    assert said[0] == f"{tmp_path / 'aime24.jsonl'}: suite aime24 has 30 problems, these are 1"


def test_data_beside_suites_is_a_tier_of_its_own(policy: Policy, tmp_path: Path) -> None:
    file = tmp_path / "aime24.jsonl"
    file.write_text('{"problem": "1+1", "answer": 2}\n')
    config = EvalConfig(data=str(file), suites=("aime24",), suite_dir=str(tmp_path))
    tiers = [s.prompts[0].tier for s in load_eval_sets(config, DataConfig(), policy.tokenizer, message=lambda text: None)]
    assert tiers == ["data", "aime24"], '"all" is the tier of both'


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="suites must be of aime24, aime25, amc23, math500, minerva, olympiadbench, gsm8k, got 'aime'"):
        read_suite("aime", None)
    with pytest.raises(
        ValueError, match=r"suite_dir must hold gsm8k.jsonl \(or gsm8k.parquet, gsm8k_test.jsonl, gsm8k_test.parquet\), got"
    ):
        read_suite("gsm8k", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES)
def test_whole_suites_in_local_files(policy: Policy, tmp_path: Path, name: str) -> None:
    """As many rows as the suite has, with gold answers of every kind that it has."""
    policy.tokenizer.encode = lambda text, add_special_tokens: []  # the tiny tokenizer knows digits only
    write_rows(tmp_path / f"{name}_{SUITES[name].split}.jsonl", [row(name, number) for number in range(SUITES[name].size)])
    said: list[str] = []
    config = EvalConfig(suites=(name,), suite_dir=str(tmp_path))
    (found,) = load_eval_sets(config, DataConfig(), policy.tokenizer, message=said.append)
    assert len({p.id for p in found.prompts}) == len(found.prompts) == SUITES[name].size and not said
    assert all(p.id.startswith(f"{name}/") and p.tier == name for p in found.prompts)
    with Verifier("math") as verifier:
        assert not verifier.unparseable([p.answer for p in found.prompts[: len(GOLD_ANSWERS[name])]])
