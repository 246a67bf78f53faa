"""What README and docs say about the code is so: examples run as they are printed, options and commands exist, sentences are short."""

import doctest
import json
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from aer_kernels import BELOW_START, EXPLORE_THEN_SETTLE
from aer_kernels.entropy_control.config import Kind
from aer_kernels.methods import METHODS
from aer_train.cli import main
from aer_train.clock import PARTS
from aer_train.config.parse import read_config
from aer_train.config.presets import PRESETS
from aer_train.config.tree import TrainConfig
from aer_train.tasks.warmup import build_model
from benchmarks import figure

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
GUIDES = sorted((ROOT / "docs").glob("*.md"))
FURTHER = sorted((ROOT / "docs").glob("*/*.md"))
"""Their examples need other trainers, and are run in tests/integrations."""

FRONT = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "examples" / "README.md",
]
PAGES = [*FRONT, *GUIDES, *FURTHER]
WORDS = 30


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def sentences(text: str) -> list[str]:
    """Sentences of the prose: a line of a list, a quotation or a heading begins a new one; code and tables are not prose."""
    text = re.sub(r"```.*?```|<!--.*?-->", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"^[ ]*\|.*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"^ *(#+|[-*+]|\d+\.|>|!\[) ?", "\n\n", text, flags=re.MULTILINE)
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n|[.!?][*)`\]\"]*(?=\s)", text) if part.strip()]


def metric_names() -> set[str]:
    """Names of metrics in the trainer's code: its strings of the form part/name, with NAME for what is filled in."""
    parts = "reward|outcome|policy|optim|entropy|method|tokens|rollout|refill|difficulty|time|time_share|perf|memory"
    sources = [path for path in (ROOT / "aer_train").rglob("*.py") if path.parent.name not in ("report", "config")]
    found = {name for path in sources for name in re.findall(rf"""f?"((?:{parts})/[\w/{{}}]+)\"""", path.read_text())}
    return {re.sub(r"{\w+}", "NAME", name) for name in found}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_foreign_training_loop():
    code = blocks(ROOT / "README.md", "python")[0]
    assert len(code.strip().splitlines()) <= 13
    torch.manual_seed(0)
    model = build_model()
    mask = torch.ones(4, 12, dtype=torch.long)
    mask[1, 9:] = 0
    batch = SimpleNamespace(
        ids=torch.randint(2, 17, (4, 12)), mask=mask, loss_mask=mask * (torch.arange(12) > 5), advantages=torch.tensor([1.0, -1.0, 0.5, -0.5]),
        group_accuracy=torch.tensor([0.5, 0.0]), group_entropy=torch.tensor([9.0, 8.0]), prompt_of_row=torch.tensor([0, 0, 1, 1]),
    )  # fmt: skip
    before = model.lm_head.weight.detach().clone()
    scope = {"rollouts": [batch] * 3, "model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3)}
    exec(code, scope)
    assert not torch.equal(before, model.lm_head.weight)
    assert scope["ctl"].initial_entropy > 5.0 and torch.isfinite(scope["out"].loss), "nats a response"


@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_examples_of_the_guides_run(page, tmp_path, monkeypatch):
    """In order; one that names its file becomes that file, and the others may import it. What a prompt shows is what is printed. One in TRL
    runs in tests/integrations."""
    monkeypatch.syspath_prepend(tmp_path)
    for code in blocks(page, "python"):
        if code.startswith("# in TRL\n"):
            continue
        file = re.match(r"# (\w+\.py)\b", code)
        if file:
            (tmp_path / file[1]).write_text(code)
        if code.startswith(">>>"):
            parsed = doctest.DocTestParser().get_doctest(code, {}, page.name, str(page), 0)
            assert doctest.DocTestRunner(verbose=False).run(parsed).failed == 0
        else:
            exec(compile(code, f"{page.name} example", "exec"), {"__name__": "example"})


def test_the_example_of_a_method_trains_and_resumes(tmp_path, monkeypatch, model_folder):
    """By its dotted path, with its options as flags, state in the checkpoint and numbers in the metrics."""
    page = ROOT / "docs" / "methods.md"
    code = next(code for code in blocks(page, "python") if code.startswith("# my_module.py"))
    assert len(code.splitlines()) < 40
    (tmp_path / "my_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    options = ["--method.kind", "my_module.MyMethod", "--method.target", "9", "--run.threads", "1"]
    sizes = ["--optim.prompts-per-step", "4", "--rollout.max-new-tokens", "4", "--rollout.group-size", "4", "--reward.kind", "countdown"]
    assert main(["train", "--model.name", str(model_folder), *options, *sizes, "--run.steps", "2", "--run.out", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--run.steps", "3"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["method/share"] for row in rows] == pytest.approx([0.0, 0.05, 0.1]), "entropy is below 9 nats: it rises at every step"
    assert all(row["entropy/target"] == 9 and row["entropy/controlled"] == row["entropy/mean"] for row in rows)


TABLE = ROOT / "docs" / "methods_table.md"


def rows_of(title: str) -> list[list[str]]:
    """The cells of the rows of the tables below a heading of the table of methods."""
    part = TABLE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    found = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines() if line.startswith("| ")]
    assert len({len(row) for row in found[1:] if len(row) == len(found[0])}) == 1
    return found


@pytest.mark.parametrize(
    "title", ["What each method does", "What each needs, and what it costs", "What differs from the releases, and why"]
)
def test_every_method_has_its_row(title):
    named = [name for row in rows_of(title) for name in re.findall(r"`([a-z_]+)`", row[0])]
    others = {"method.kind", "aer", "balance", "bang_bang"}
    assert sorted(set(named) - others) == sorted(set(METHODS) - set(get_args(Kind))) and len(named) == len(set(named))


def test_every_test_of_the_table_exists():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", TABLE.read_text())
    assert len(set(named)) > 30 and [name for name in named if f"def {name}(" not in tests] == []
    costs = rows_of("What each needs, and what it costs")
    assert all(row[-1].startswith("`test_") for row in costs[1:]), "each has one"


@pytest.mark.parametrize("module", ["aer_kernels", "aer_kernels.methods", "aer_kernels.entropy_control"])
def test_the_reference_has_every_public_name(module):
    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    known = set(re.findall(r"^::: [\w.]*\.(\w+)$", pages, re.MULTILINE))
    assert set(import_module(module).__all__) <= known


def test_commands_and_presets_exist(monkeypatch, capsys):
    """Every preset is dry-run, the big ones too, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = "\n".join(page.read_text() for page in PAGES)
    commands = {"demo", "train", "eval", "compare", "grade", "merge", "report", "doctor"}
    assert set(re.findall(r"aer-train ([a-z]+)", text)) == commands
    assert set(re.findall(r"--preset (\w+)", text)) <= set(PRESETS)
    for preset in PRESETS:
        assert main(["train", "--preset", preset, "--dry-run"]) == 0
        assert "predicted memory of" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_exist(page):
    """Flags, and names of options in the text; every configuration file that is shown can be read."""
    config = TrainConfig()
    known = {f"{section.name}.{option.name}" for section in fields(config) for option in fields(getattr(config, section.name))}
    for kind, method in METHODS.items():
        known |= {f"method.{under}{option.name}" for option in fields(method.Config) for under in ("", f"{kind}.")}
    text = page.read_text()
    sections = "|".join(section.name for section in fields(config))
    flags = {option.replace("-", "_") for option in re.findall(rf"--((?:{sections})(?:\.[a-z_-]+)+)", text)}
    named = {
        option
        for option in re.findall(rf"`((?:{sections})\.[a-z_]+)(?: = [^`]*)?`", text)
        if not option.endswith((".toml", ".json", ".md"))
    }
    assert flags | named <= known


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_configuration_files_can_be_read(page, tmp_path):
    for number, code in enumerate(blocks(page, "toml")):
        (tmp_path / f"{number}.toml").write_text(code)
        assert read_config(tmp_path / f"{number}.toml") != TrainConfig(), "it says something"


def test_the_two_settings_are_those_with_names(tmp_path):
    found = []
    for code in blocks(ROOT / "docs" / "methods.md", "toml"):
        (tmp_path / "run.toml").write_text(code)
        found.append(read_config(tmp_path / "run.toml").method)
    assert found == [BELOW_START, EXPLORE_THEN_SETTLE]


def test_numbers_of_the_readme_are_measured(tmp_path):
    """Those of the figure and of the sentence above it are in the committed results, those of the table in the study's."""
    rows = {row["provider"]: row for row in figure.measured()}
    said = [f"{name} {rows[name]['median_ms']:.1f} ms and {rows[name]['peak_mib'] / 1024:.1f} GiB" for name in ("aer_kernels", "eager")]
    assert ", ".join(said) in README
    assert f"takes {rows['aer_kernels']['ratio_to_products']:.2f} times as long as its matrix products" in README
    figure.save(figure.measured(), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes()[1:4] == b"PNG"
    table, study = re.findall(r"([+-])(\.\d+) ± (\.\d+)", README), (ROOT / "docs" / "study.md").read_text()
    assert len(table) == 12 and all(f"{sign}0{mean} ± 0{width}" in study for sign, mean, width in table)


def test_readme_is_a_front_door():
    assert len(README.encode()) <= 10_000
    for command in ("make demo", "make test", "make check"):
        assert command in README


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_sentences_are_short(page):
    long = [sentence for sentence in sentences(page.read_text()) if len(sentence.split()) > WORDS]
    assert not long, f"{len(long)} sentences over {WORDS} words, the first: {long[0]}"


def test_sentences_are_told_apart():
    text = "# Title\n\nOne `a.b` is 0.5, say (e.g. here). Two!\nThree goes\non.\n* four: x\n* five **five.** Six\n\n| no | no |\n\n```\nno no.\n```\nSeven"
    found = ["Title", "One `a.b` is 0.5, say (e.g", "here)", "Two", "Three goes on", "four: x", "five **five", "Six", "Seven"]
    assert sentences(text) == found


def test_every_metric_has_a_row():
    """By its whole name, also where one row has several; `time/PART` stands for the parts of `Clock`."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    names = metric_names()
    assert {"reward/mean", "reward/tier/NAME", "outcome/NAME", "rollout/probe_moved", "time/rollout_hidden"} <= names and len(names) > 60
    listed = set(re.findall(r"`([a-z_]+/[\w/]+)`", page.replace("PART`", "NAME`")))
    columns, prefixes = {"reward/NAME"}, {"reward/failed/"}  # of the saved samples; of what the hints look for
    missing = {name for name in names - listed - columns - prefixes if f"{name.split('/')[0]}/NAME" not in listed}
    assert not sorted(missing), "in the code, and not on the page"
    assert not sorted(name for name in listed - names if not name.endswith("/NAME") and name.split("/")[0] not in ("entropy", "method"))
    assert all(f"`{part}`" in page for part in PARTS)
