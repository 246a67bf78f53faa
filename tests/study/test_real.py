"""A real model on word problems: what is read, taught and held out; and the whole path with a tiny random model."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from aer_train.config.tree import DataConfig, ModelConfig
from aer_train.data.prompts import load_prompts
from aer_train.model import load_policy
from study import __main__ as command
from study.conditions import CONDITIONS, write_conditions
from study.config import Study
from study.jobs import run_job
from study.options import options_of
from study.page import written as written_page
from study.policies import REPORT, policy_folder, prepare
from study.real.equations import annotated_lines, lines_of, result_of
from study.real.model import model_source, packaged_file, whole
from study.real.problems import read_problems, split_problems, with_share
from study.real.results import real_table, save_training
from study.real.setting import part_path
from study.real.warmup import WarmUp, response_to, warm_up
from study.records import read_records, write_records
from tests.train.conftest import save_byte_model

EQUATIONS = {
    "one operation": ("( 76.0 - 25.0 )", ["76 - 25 = 51"]),
    "innermost first": ("((41.0-37.0)/2.0)", ["41 - 37 = 4", "4 / 2 = 2"]),
    "right operand in brackets": ("( 6.0 - ( 3.0 + 2.0 ) )", ["3 + 2 = 5", "6 - 5 = 1"]),
    "no brackets": ("2 + 3 * 4", ["3 * 4 = 12", "2 + 12 = 14"]),
    "a fraction": ("7 / 2", ["7 / 2 = 3.5"]),
    "a number alone": ("8.0", []),
}


@pytest.mark.parametrize("kind", EQUATIONS)
def test_an_equation_is_a_line_for_each_operation(kind):
    equation, lines = EQUATIONS[kind]
    assert lines_of(equation) == lines


@pytest.mark.parametrize("equation", ["3 +", "x - 2", "2 ** 9", "1 / 0", "__import__('os')", "-3 + 5", "True + 1", ""])
def test_what_is_no_equation_is_refused(equation):
    """Names, calls and powers too: an equation of a file is never run."""
    with pytest.raises(ValueError, match=r"equation must have numbers, \+ - \* / and brackets, got"):
        lines_of(equation)


def test_calculations_of_gsm8k():
    solution = "She has 3 * 12 = <<3*12=36>>36.\n36 * .75 = <<36*.75=27>>27 are left, <<10%=.1>>.\n#### 27"
    assert annotated_lines(solution) == ["3 * 12 = 36", "36 * 0.75 = 27"] and result_of(annotated_lines(solution)) == "27"


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": str(path)}


def test_problems_of_every_source(tmp_path):
    """Files of one's own, rows as SVAMP, MultiArith and GSM8K have them; each text once; an equation that contradicts its answer is not taught."""
    sources = [
        written(tmp_path / "own.jsonl", [
            {"id": "a", "problem": "One  more?", "answer": "3", "equation": "1 + 2"},
            {"id": "b", "problem": "one more?", "answer": "3", "equation": "1 + 2"},
            {"id": "c", "problem": "No equation", "answer": 5, "operations": 2},
            {"id": "d", "problem": "Contradiction", "answer": "4", "equation": "1 + 2"},
            {"id": "e", "problem": "Too long", "answer": "4", "equation": "1 + 1 + 1 + 1"},
            {"id": "f", "problem": "Nothing to do", "answer": "4", "equation": "4"},
        ]),
        written(tmp_path / "svamp.jsonl", [{"ID": "chal-1", "question_concat": "Dvds", "Answer": "51.0", "Equation": "( 76.0 - 25.0 )"}]),
        written(tmp_path / "multiarith.jsonl", [{"question": " Pies", "final_ans": "7"}]) | {"operations": 2},
        written(tmp_path / "gsm8k.jsonl", [{"question": "Pencils", "answer": "<<3*12=36>>36\n<<36+1000=1036>>\n#### 1,036"}]),
    ]  # fmt: skip
    found = {problem.problem: (problem.tier, problem.answer, problem.lines) for problem in read_problems(sources, (1, 2))}
    assert found == {
        "One  more?": ("easy", "3", ("1 + 2 = 3",)),
        "No equation": ("hard", "5", ()),
        "Contradiction": ("easy", "4", ()),
        "Dvds": ("easy", "51", ("76 - 25 = 51",)),
        "Pies": ("hard", "7", ()),
        "Pencils": ("hard", "1036", ("3 * 12 = 36", "36 + 1000 = 1036")),
    }


BAD = {
    "no problem": (
        [{"answer": "1", "equation": "1 + 0"}],
        r"row 0 must have a column problem or question_concat or question, got answer, equation",
    ),
    "no answer": ([{"problem": "?"}], r"row 0 must have a column answer or Answer or final_ans, got problem"),
    "a problem that is no text": ([{"problem": 3, "answer": "1", "equation": "1 + 0"}], "must have a problem that is text"),
    "no equation to read": ([{"problem": "?", "answer": "1", "equation": "one"}], r"equation must have numbers, .*, got 'one'"),
    "one tier": (
        [{"problem": "?", "answer": "1", "equation": "1 + 0"}],
        r"problems must have some of \(1, 2\) operations .*, got no hard ones",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_problems_are_refused(tmp_path, kind):
    rows, message = BAD[kind]
    with pytest.raises(ValueError, match=message):
        read_problems([written(tmp_path / "bad.jsonl", rows)], (1, 2))


def drawn(easy=14, hard=20):
    """Rows with an equation each."""
    rows = [{"id": f"e{i}", "problem": f"Ann has {i} pens and gets 2", "answer": str(i + 2), "equation": f"{i} + 2"} for i in range(easy)]
    return rows + [
        {"id": f"h{i}", "problem": f"Bob has {i} pens, gets 2 and 1", "answer": str(i + 3), "equation": f"({i} + 2) + 1"}
        for i in range(hard)
    ]


def test_parts_are_disjoint_and_seeded(tmp_path):
    """Every problem is in one part; the same seed draws the same; the warm-up has problems with lines alone."""
    problems = read_problems([written(tmp_path / "p.jsonl", drawn())], (1, 2))
    mute = [replace(p, lines=()) if int(p.id[1:]) % 2 else p for p in problems]
    sizes = {"warmup": [3, 2], "validation": [2, 2], "test": [2, 3]}
    parts = split_problems(mute, sizes, 0)
    assert sorted(p.id for part in parts.values() for p in part) == sorted(p.id for p in problems)
    assert {name: [sum(p.tier == tier for p in part) for tier in ("easy", "hard")] for name, part in parts.items()} == {
        **sizes,
        "train": [7, 13],
    }
    assert all(p.lines for p in parts["warmup"]) and parts == split_problems(mute, sizes, 0) != split_problems(mute, sizes, 1)
    for name, counts in (("warmup", [20, 1]), ("test", [14, 1])):
        with pytest.raises(ValueError, match=rf"split\.{name} must leave easy problems to train on, got {counts[0]} of 14"):
            split_problems(problems, {name: counts}, 0)


@pytest.mark.parametrize(("hard", "counts"), [(0.5, [10, 10]), (0.2, [10, 2]), (0.75, [10, 30])])
def test_shares_of_hard_problems(tmp_path, hard, counts):
    chosen = with_share(read_problems([written(tmp_path / "p.jsonl", drawn(10, 30))], (1, 2)), hard)
    assert [sum(p.tier == tier for p in chosen) for tier in ("easy", "hard")] == counts


def test_a_model_of_a_package(tmp_path, monkeypatch):
    """Its one GGUF file is found without an import and converted once; hub ids and folders pass."""
    (tmp_path / "weights_only").mkdir()
    (tmp_path / "weights_only" / "__init__.py").write_text("raise RuntimeError('its requirements are not there')")
    monkeypatch.syspath_prepend(tmp_path)
    assert model_source("org/name", tmp_path) == "org/name"
    with pytest.raises(ValueError, match=r"model must name an installed package with one \.gguf file, got package:weights_only with 0"):
        model_source("package:weights_only", tmp_path)
    with pytest.raises(ValueError, match="got package:not-there with 0"):
        model_source("package:not-there", tmp_path)
    (tmp_path / "weights_only" / "small.gguf").touch()
    made = []
    monkeypatch.setattr("study.real.model.convert", lambda file, out: made.append(file) or out.mkdir())
    assert (
        model_source("package:weights_only", tmp_path)
        == model_source("package:weights_only", tmp_path)
        == str(tmp_path / "weights_only-small")
    )
    assert made == [packaged_file("weights_only")]


def test_a_folder_is_there_as_a_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), whole(tmp_path / "out") as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with whole(tmp_path / "out") as folder:
        (folder / "all").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "all"]


@pytest.fixture(scope="module")
def bytes_model(tmp_path_factory):
    """A random Qwen3 over bytes."""
    save_byte_model(folder := tmp_path_factory.mktemp("bytes"))
    return folder


def test_the_warm_up_teaches_responses_alone(bytes_model, tmp_path):
    """What it minimises is the mean loss of the tokens of response and end, by the logits of each problem alone; and it falls."""
    policy = load_policy(ModelConfig(name=str(bytes_model)), torch.device("cpu"))
    rows = [
        {"id": "0", "problem": "Ann?", "answer": "3", "lines": ["1 + 2 = 3"]},
        {"id": "1", "problem": "Bob has 2?", "answer": "12", "lines": ["4 * 3 = 12"]},
    ]
    prompts = load_prompts(
        DataConfig(template="{problem}\n"), policy.tokenizer, written(tmp_path / "w.jsonl", rows)["source"], "train"
    ).prompts
    assert response_to(prompts[0]) == "1 + 2 = 3\n#### 3"
    losses = []
    for prompt in prompts:
        asked = policy.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
        said = [*policy.tokenizer(response_to(prompt), add_special_tokens=False)["input_ids"], policy.tokenizer.eos_token_id]
        with torch.no_grad():
            logp = policy.model(input_ids=torch.tensor([asked + said])).logits[0].double().log_softmax(-1)
        losses += [-float(logp[len(asked) - 1 + place, token]) for place, token in enumerate(said)]
    found = warm_up(policy, prompts, WarmUp(epochs=20, lr=3e-3, batch=2), 0)
    assert found[0] == pytest.approx(sum(losses) / len(losses), abs=1e-5) and len(found) == 20 and found[-1] < 0.5 * found[0]


REAL = """
[settings.words]
model = "MODEL"
problems = [{source = "PROBLEMS"}]
operations = [1, 2]
split = {warmup = [4, 4], validation = [2, 2], test = [2, 3]}
warmup = {epochs = 1, lr = 1e-3, batch = 4}
start_samples = 2
lr = 1e-3
[settings.words.config]
data = {template = "{problem}\\n"}
rollout = {group_size = 2, max_new_tokens = 6}
optim = {prompts_per_step = 4, warmup_steps = 0}
[methods.grpo]
method = {kind = "off"}
[methods.aer]
method = {kind = "aer", quantity = "response", tau = 0.4, difficulty = "uniform", surplus = 1.0}
[matrices.tiny]
settings = ["words"]
methods = ["grpo", "aer"]
hard_shares = [0.5]
lr_scales = [1.0]
seeds = [0]
steps = 2
samples = 2
splits = ["validation", "test", "test at 0"]
"""


@pytest.fixture
def real(tmp_path, bytes_model):
    (tmp_path / "real.toml").write_text(REAL)
    return Study.read(tmp_path / "real.toml").with_sources(str(bytes_model), written(tmp_path / "p.jsonl", drawn())["source"])


MISTAKES = {
    "no model": (lambda s: s.pop("model"), r"settings\.words must have model, got problems, "),
    "falling operations": (lambda s: s.update(operations=[2, 1]), r"settings\.words\.operations must be two rising whole numbers, got \[2, 1\]"),
    "one number of operations": (lambda s: s.update(operations=[1]), r"operations must be two rising whole numbers, got \[1\]"),
    "no test problems": (lambda s: s["split"].pop("test"), r"split\.test must be how many easy and hard problems, each at least 1, got None"),
    "no hard ones": (lambda s: s["split"].update(warmup=[4, 0]), r"split\.warmup must be how many easy and hard .*, got \[4, 0\]"),
    "no epoch": (lambda s: s["warmup"].update(epochs=0), r"warmup\.epochs must be > 0, got 0"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISTAKES)
def test_bad_settings_are_refused(real, kind):
    """When the matrix is read: before a model is."""
    change, message = MISTAKES[kind]
    change(real.settings["words"])
    with pytest.raises(ValueError, match=message):
        real.matrix("tiny")


@pytest.mark.slow
def test_the_whole_path(real, tmp_path):
    """Problems, warm-up and numbers before and after; both arms trained and evaluated; records, table and figure. A second time nothing is made."""
    matrix, cache, out = real.matrix("tiny"), tmp_path / "policies", tmp_path / "out"
    setting = real.settings["words"]
    policy = prepare(cache, setting)
    report = json.loads((policy / REPORT).read_text())
    assert report.keys() >= {"easy accuracy before", "easy accuracy", "hard pass@2", "test hard greedy", "first loss", "last loss"}
    stamp = (policy / REPORT).stat().st_mtime_ns
    assert prepare(cache, setting) == policy and (policy / REPORT).stat().st_mtime_ns == stamp
    write_conditions(real, matrix, cache, out)
    for job in matrix.jobs:
        run_job(job, real.train_config(matrix, job, out / job.folder, policy), matrix)
    records = read_records(out)
    write_records(records, out / "records.parquet")
    assert read_records(out / "records.parquet") == records and [r["method"] for r in records] == ["aer", "grpo"]
    for record in records:
        assert {split: {tier: len(counts) for tier, counts in tiers.items()} for split, tiers in record["right"].items()} == {
            "validation": {"easy": 2, "hard": 2},
            "test": {"easy": 2, "hard": 3},
            "test at 0": {"easy": 2, "hard": 3},
        }
        assert record["diverged"] is None and len(record["curves"]["easy"]) == 2
        assert set(record["right"]["test at 0"]["hard"]) <= {0, 2}, "greedy responses are all right or all wrong"
    trained = [json.loads(line) for line in part_path(policy, "train-hard0.5").read_text().splitlines()]
    held = [json.loads(line) for part in ("warmup", "validation", "test") for line in part_path(policy, part).read_text().splitlines()]
    assert sum(row["tier"] == "hard" for row in trained) == len(trained) / 2 == 6
    assert not {row["id"] for row in trained} & {row["id"] for row in held}
    lines = real_table(records, json.loads((out / CONDITIONS).read_text())["policies"]).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["before", "aer", "grpo"] and len({line.count("|") for line in lines}) == 1
    (tmp_path / "real.json").write_text((out / CONDITIONS).read_text())
    page = written_page(
        "<!-- table: real real -->\n<!-- end -->\n<!-- table: real validation -->\n<!-- end -->\n", {"real": records}, tmp_path
    )
    assert "\n".join(lines) in page and "| hard pass@1 |" in page
    save_training(records, out / "training.png")
    assert (out / "training.png").stat().st_size > 0


def test_where_a_policy_lies_is_no_option_of_its_runs(real, tmp_path):
    """Another cache is no change, other problems and another warm-up are: they have another folder."""
    matrix = real.matrix("tiny")
    here, there = (options_of(real.train_config(matrix, matrix.jobs[0], tmp_path, tmp_path / name), matrix) for name in "ab")
    assert here == there and here["data.train"] == "problems/train-hard0.5.jsonl" and here["reward.kind"] == "math"
    setting = real.settings["words"]
    others = [setting | {"problems": [{"source": "others.jsonl"}]}, setting | {"model": "org/other"}, setting | {"warmup": {"epochs": 3}}]
    assert len({policy_folder(tmp_path, each) for each in [setting, *others]}) == 4


def test_the_command_takes_a_model_and_problems(tmp_path, monkeypatch, capsys):
    """They replace those of the file, for settings that have them; a file that is not there is one line."""
    (tmp_path / "real.toml").write_text(REAL)
    seen = SimpleNamespace()
    monkeypatch.setattr(command, "_finish", lambda study, matrix, given: vars(seen).update(study.settings["words"]) or 0)
    arguments = ["tiny", "--config", str(tmp_path / "real.toml"), "--out", str(tmp_path / "out")]
    assert command.main([*arguments, "--model", "org/name", "--problems", "mine.jsonl"]) == 0
    assert (seen.model, seen.problems) == ("org/name", [{"source": "mine.jsonl"}])
    with pytest.raises(ValueError, match=r"data must name an existing file, got mine\.jsonl"):
        read_problems(seen.problems, (1, 2))


def test_the_matrices_of_the_file_can_be_made(tmp_path):
    """Every method of every matrix has options that exist, and beginnings that are told apart."""
    study = Study.read(command.CONFIG.parent / "real" / "real.toml")
    for name in study.matrices:
        matrix = study.matrix(name)
        for job in matrix.jobs:
            config = study.train_config(matrix, job, tmp_path / job.folder, tmp_path / "policy")
            assert config.data.tier_column == "tier" and config.reward.kind == "math"
    assert policy_folder(tmp_path, study.settings["words"]) != policy_folder(tmp_path, study.settings["words-gsm8k"])
