"""Files of somebody else: whatever is in a model, a checkpoint or a dataset, loading it runs nothing, and is refused in one line or right.

Every payload makes the folder `canary`, if anything of it is run. The first test shows that it can.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from aer_kernels import AdaptiveEntropyController
from aer_train.config.parse import read_config
from aer_train.config.tree import DataConfig, ModelConfig, TrainConfig
from aer_train.data.prompts import load_prompts
from aer_train.data.sources import read_table
from aer_train.doctor import predict_memory
from aer_train.model import Policy, load_policy
from aer_train.run import checkpoint
from aer_train.run.checkpoint import Progress
from aer_train.run.manifest import describe
from tests.train.test_checkpoint import trained

CPU = torch.device("cpu")


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """What every payload makes."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "something was run"


@pytest.fixture
def payload(canary: Path) -> Payload:
    return Payload(canary)


@pytest.fixture(autouse=True)
def willing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked anything, says yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    """A sound one, to be spoilt."""
    return shutil.copytree(model_folder, tmp_path / "model")


def code(canary: Path) -> str:
    return f"import os\nos.mkdir({str(canary)!r})\n"


def edit(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def test_payloads_work(tmp_path: Path) -> None:
    for run in (lambda path: pickle.loads(pickle.dumps(Payload(path))), lambda path: exec(code(path))):
        run(tmp_path / "made")
        assert (tmp_path / "made").is_dir()
        (tmp_path / "made").rmdir()


def pickled(model: Path, payload: Payload, **options: Any) -> None:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save({**weights, "payload": payload}, model / "pytorch_model.bin", **options)


def pickled_long_ago(model: Path, payload: Payload) -> None:
    pickled(model, payload, _use_new_zipfile_serialization=False)


def a_bare_pickle(model: Path, payload: Payload) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(payload))


def pickled_in_parts(model: Path, payload: Payload, index: str = "pytorch_model.bin.index.json") -> None:
    names = list(load_file(model / "model.safetensors"))
    pickled(model, payload)
    (model / "pytorch_model.bin").rename(model / "part.bin")
    (model / index).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "part.bin")}))


def pickled_in_parts_that_claim_to_be_safe(model: Path, payload: Payload) -> None:
    pickled_in_parts(model, payload, "model.safetensors.index.json")


@pytest.mark.parametrize(
    "spoil", [pickled, pickled_long_ago, a_bare_pickle, pickled_in_parts, pickled_in_parts_that_claim_to_be_safe], ids=lambda f: f.__name__
)
def test_pickled_weights(model: Path, payload: Payload, spoil: Callable[[Path, Payload], None]) -> None:
    spoil(model, payload)
    with pytest.raises(ValueError, match=r"model.name must be .*: its weights must be tensors alone .*, got a pickle of something else$"):
        load_policy(ModelConfig(name=str(model)), CPU)


def test_a_pickle_that_claims_to_be_safetensors(model: Path, payload: Payload) -> None:
    (model / "model.safetensors").write_bytes(pickle.dumps(payload))
    with pytest.raises(ValueError, match=r"model.name must be .*: Error while deserializing header"):
        load_policy(ModelConfig(name=str(model)), CPU)


def test_pickled_tensors_alone_are_fine(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin")
    loaded = load_policy(ModelConfig(name=str(model)), CPU).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


AUTO_MAP = {"AutoConfig": "configuration_mine.Mine", "AutoModelForCausalLM": "modeling_mine.Mine"}


@pytest.fixture
def model_with_code(model: Path, canary: Path) -> Path:
    for name in ("configuration_mine", "modeling_mine", "tokenization_mine"):
        (model / f"{name}.py").write_text(code(canary) + "from transformers import Qwen3Config\n\n\nclass Mine(Qwen3Config):\n    pass\n")
    return model


@pytest.mark.parametrize("entries", [{}, {"trust_remote_code": True}], ids=["plain", "trusts itself"])
@pytest.mark.parametrize("elsewhere", ["", "somebody/repo--"], ids=["files", "files of another repository"])
def test_a_model_with_code_of_its_own(model_with_code: Path, entries: dict[str, Any], elsewhere: str) -> None:
    where = {name: elsewhere + reference for name, reference in AUTO_MAP.items()}
    edit(model_with_code / "config.json", model_type="mine", auto_map=where, **entries)
    refused = "it comes with Python files of its own, which only model.trust_remote_code true would run"
    with pytest.raises(ValueError, match=rf"model.name must be .*: {refused}$"):
        load_policy(ModelConfig(name=str(model_with_code)), CPU)
    with pytest.raises(LookupError, match=f"^{refused}$"):
        predict_memory(TrainConfig(model=ModelConfig(name=str(model_with_code))))


def test_code_of_a_model_runs_only_by_the_option_that_says_so(model: Path) -> None:
    """The option does something, here: a head whose weight is the first module's."""
    (model / "configuration_mine.py").write_text(
        "from transformers import Qwen3Config\n\n\nclass Mine(Qwen3Config):\n    model_type = 'mine'\n"
    )
    (model / "modeling_mine.py").write_text(
        "from transformers import Qwen3ForCausalLM\nfrom .configuration_mine import Mine as Config\n\n\n"
        "class Mine(Qwen3ForCausalLM):\n    config_class = Config\n"
    )
    edit(model / "config.json", model_type="mine", auto_map=AUTO_MAP)
    policy = load_policy(ModelConfig(name=str(model), trust_remote_code=True), CPU)
    assert type(policy.model).__module__.endswith("modeling_mine")


@pytest.mark.parametrize("known", [True, False], ids=["of a known kind", "of an unknown kind"])
def test_files_of_code_beside_a_model_that_transformers_knows(model_with_code: Path, policy: Policy, known: bool) -> None:
    """They are not needed, and not read."""
    edit(model_with_code / "config.json", auto_map=AUTO_MAP)
    tokenizer = {} if known else {"tokenizer_class": "Mine"}
    edit(model_with_code / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_mine.Mine"] * 2}, **tokenizer)
    (model_with_code / "custom_generate").mkdir()
    shutil.copy(model_with_code / "modeling_mine.py", model_with_code / "custom_generate" / "generate.py")
    edit(model_with_code / "generation_config.json", custom_generate=str(model_with_code), trust_remote_code=True)
    found = load_policy(ModelConfig(name=str(model_with_code)), CPU)
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), policy.model.parameters(), strict=True))
    assert found.tokenizer.encode("12+3") == policy.tokenizer.encode("12+3")


def test_a_config_does_not_choose_kernels(model: Path, tmp_path: Path) -> None:
    """transformers takes `attn_implementation` from config.json, also of its parts, and loads `org/name` from the hub: compiled code."""
    from transformers import AutoConfig, Gemma3Config, Gemma3ForConditionalGeneration

    entries = {name: "somebody/kernels" for name in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")}
    edit(model / "config.json", **entries, use_kernels=True)
    assert AutoConfig.from_pretrained(model)._attn_implementation == "somebody/kernels", "so there is something to prevent"
    assert load_policy(ModelConfig(name=str(model)), CPU).model.config._attn_implementation == "sdpa"

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 17, "num_key_value_heads": 1, "head_dim": 8}
    config = Gemma3Config(text_config=text, vision_config={**small, "image_size": 28, "patch_size": 14})
    Gemma3ForConditionalGeneration(config).save_pretrained(model)
    stored = json.loads((model / "config.json").read_text())
    edit(model / "config.json", **{part: {**stored[part], **entries} for part in ("text_config", "vision_config")})
    found = load_policy(ModelConfig(name=str(model)), CPU).model.config
    assert "somebody/kernels" not in {found._attn_implementation, found.get_text_config()._attn_implementation}


@pytest.mark.parametrize(
    "entries",
    [
        {"torch_dtype": "__import__('os').getcwd()", "architectures": ["os.getcwd"]},
        {"quantization_config": {"quant_method": "os.getcwd", "modules_to_not_convert": ["os"]}},
        {"problem_type": "os.getcwd", "task_specific_params": {"py/object": "os.getcwd"}, "tokenizer_class": "os.getcwd"},
    ],
    ids=lambda entries: next(iter(entries)),
)
def test_further_keys_of_a_config_are_nothing_but_text(model: Path, policy: Policy, entries: dict[str, Any]) -> None:
    edit(model / "config.json", **entries)
    found = load_policy(ModelConfig(name=str(model)), CPU)
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), policy.model.parameters(), strict=True))


@pytest.mark.parametrize(
    "expression",
    ["cycler.__init__.__globals__.os.mkdir(PATH)", "''.__class__.__mro__[1].__subclasses__()", "messages.append.__self__.__class__.mro()"],
)
def test_a_chat_template_is_in_a_sandbox(model: Path, canary: Path, tmp_path: Path, expression: str) -> None:
    from jinja2.exceptions import SecurityError, UndefinedError

    (model / "chat_template.jinja").write_text("{{ " + expression.replace("PATH", repr(str(canary))) + " }}")
    data = tmp_path / "a.jsonl"
    data.write_text('{"problem": "1+1", "answer": "2"}\n')
    tokenizer = load_policy(ModelConfig(name=str(model)), CPU).tokenizer
    with pytest.raises((SecurityError, UndefinedError, ValueError)):
        load_prompts(DataConfig(chat=True), tokenizer, str(data), "train")


@pytest.fixture
def saved(policy: Policy, tmp_path: Path) -> Path:
    """A sound checkpoint, to be spoilt."""
    return checkpoint.save(tmp_path / "run", Progress(1), policy, *trained(policy), keep=1)


def restore(folder: Path) -> torch.optim.Optimizer:
    """As a resume does, after the owner of the checkpoint has written a manifest that fits."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "state.json"]
    edit(folder / "state.json", files=describe(folder, files))
    checkpoint.check(folder)
    policy = load_policy(ModelConfig(name=str(folder)), CPU)
    optimizer = torch.optim.AdamW(policy.model.parameters())
    assert checkpoint.restore(folder, policy, optimizer, AdaptiveEntropyController()) == Progress(1)
    return optimizer


def rewrite_index(folder: Path, change: Callable[[Any], Any]) -> None:
    file = folder / "optimizer" / ".metadata"
    file.write_bytes(pickle.dumps(change(pickle.loads(file.read_bytes()))))


def test_an_untouched_checkpoint_is_restored(saved: Path) -> None:
    assert any(state["exp_avg"].any() for state in restore(saved).state.values())


def with_planner_data(payload: Payload) -> Callable[[Any], Any]:
    def change(index: Any) -> Any:
        index.planner_data["payload"] = payload
        return index

    return change


@pytest.mark.parametrize("change", [lambda payload: lambda index: payload, with_planner_data], ids=["alone", "inside"])
def test_an_index_of_a_checkpoint_that_calls_something(saved: Path, payload: Payload, change: Any) -> None:
    rewrite_index(saved, change(payload))
    with pytest.raises(ValueError, match=r"optimizer/.metadata must be the index of a checkpoint, got: posix.mkdir is no part of it$"):
        restore(saved)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cbuiltins\nexec\n.",
        b"ctorch\nload\n.",
        b"ctorch.serialization\nload\n.",
        b"ctorch.distributed.checkpoint.filesystem\npickle.loads\n.",
        b"\x80\x04\x8c\x25torch.distributed.checkpoint.metadata\x94\x8c\x0aos.getcwd\x94\x93.",
        b"cpathlib\nos.getcwd\n.",
        b"not a pickle",
        b"",
    ],
    ids=repr,
)
def test_other_ways_into_an_index(saved: Path, opcodes: bytes) -> None:
    (saved / "optimizer" / ".metadata").write_bytes(opcodes)
    with pytest.raises(ValueError, match=r"optimizer/.metadata must be the index of a checkpoint, got: "):
        restore(saved)


def test_a_checkpoint_with_something_else_than_tensors(saved: Path, payload: Payload) -> None:
    """torch unpickles what is stored as bytes."""

    def change(index: Any) -> Any:
        name = next(iter(index.state_dict_metadata))
        index.state_dict_metadata[name] = BytesStorageMetadata()
        return index

    rewrite_index(saved, change)
    with pytest.raises(
        ValueError, match=r"optimizer/.metadata must be the index of a checkpoint, got: .*BytesStorageMetadata is no part of it"
    ):
        restore(saved)


def test_shards_of_a_checkpoint_that_call_something(saved: Path, payload: Payload) -> None:
    data = io.BytesIO()
    torch.save(payload, data)
    (shard,) = (saved / "optimizer").glob("*.distcp")
    shard.write_bytes(data.getvalue())

    def change(index: Any) -> Any:
        for place in index.storage_data.values():
            place.offset, place.length = 0, len(data.getvalue())
        return index

    rewrite_index(saved, change)
    with pytest.raises(ValueError, match=r"the configuration must fit the checkpoint .*UnpicklingError: Weights only load failed"):
        restore(saved)


def test_a_folder_with_a_script(tmp_path: Path, canary: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "data.py").write_text(code(canary))
    (data / "a.jsonl").write_text('{"problem": "1", "answer": "1"}\n')
    for source in (data, data / "data.py"):
        with pytest.raises(ValueError, match=r"data must be .*Dataset scripts are no longer supported, but found data.py"):
            read_table(str(source), "train", None)


@pytest.mark.parametrize("name", ["train.pkl", "train.pickle", "train.pt", "train.tar"])
def test_a_folder_of_pickles(tmp_path: Path, payload: Payload, name: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {name}\n  builder_name: pandas\n---\n")
    content = pickle.dumps(payload)
    if name.endswith(".tar"):
        with tarfile.open(data / name, "w") as archive:
            for ending in ("pth", "pkl", "pyd", "pickle", "npy"):
                member = tarfile.TarInfo(f"0.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        (data / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=r"data must be a .jsonl, .json, .csv, .parquet file, a hub dataset id or builtin:TASK, got"
    ) as told:
        read_table(str(data), "train", None)
    assert "'.csv'" not in str(told.value), "a hundred extensions would follow"


def test_parquet(tmp_path: Path, payload: Payload) -> None:
    """Types that say how they are made: pickles of older versions of Arrow, and what other libraries leave in the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    extension = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(payload)}
    schema = pa.schema([pa.field("problem", pa.string(), metadata=extension), ("answer", pa.string())])
    others = {b"huggingface": b'{"info": {"features": {"problem": {"_type": "os.getcwd"}}}}', b"pandas": pickle.dumps(payload)}
    pq.write_table(pa.table({"problem": ["1"], "answer": ["2"]}, schema=schema.with_metadata(others)), tmp_path / "a.parquet")
    assert read_table(str(tmp_path / "a.parquet"), "", None).rows == [{"problem": "1", "answer": "2"}]
    (tmp_path / "b.parquet").write_bytes(pickle.dumps(payload))
    with pytest.raises(ValueError, match=r"b.parquet must be a parquet file, got"):
        read_table(str(tmp_path / "b.parquet"), "", None)


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    row = {"problem": "{problem.__class__}", "answer": "1", "__class__": "os.getcwd", "py/reduce": ["os.getcwd"], "$type": "x"}
    file.write_text(json.dumps(row))
    assert read_table(str(file), "", None).rows == [row]
    for text in ('{"problem":' + "[" * 100_000, '{"answer": ' + "9" * 10_000 + "}", '{"a":' * 100_000):
        file.write_text(f"{json.dumps(row)}\n{text}\n")
        with pytest.raises(ValueError, match=r"a.jsonl line 2 must be a JSON object, got: "):
            read_table(str(file), "", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "run: !!python/object/apply:os.mkdir [PATH]\n"),
        ("a.yaml", "run: !!python/name:os.mkdir\n"),
        ("a.json", '{"run": {"py/reduce": ["os.mkdir", "PATH"]}}'),
        ("a.json", '{"model": {"__class__": "os.mkdir"}}'),
        ("config.json", '{"run": {"seed": "__import__(\'os\').mkdir(\'PATH\')"}}'),
        ("a.toml", '[run]\nseed = \'__import__("os").mkdir("PATH")\'\n'),
    ],
)
def test_a_configuration_is_nothing_but_values(tmp_path: Path, canary: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text.replace("PATH", str(canary)))
    with pytest.raises(ValueError, match=name):
        read_config(tmp_path / name)


NAMED = "import sys; sys.path[:] = [p for p in sys.path if p]; from aer_train.cli import main; sys.exit(main(sys.argv[1:]))"


EACH = NAMED.replace("sys.exit(main(sys.argv[1:]))", "print(*(main([*sys.argv[1:3], '--kind', kind]) for kind in sys.argv[3:]))")
"""Grades with each kind that is named."""


def grade(folder: Path, *options: str, program: str = NAMED) -> subprocess.CompletedProcess[str]:
    """As the program `aer-train` does it, whose own folder is not the current one."""
    command = [sys.executable, "-c", program, "grade", "a.jsonl", *options]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_folder_of_data_is_no_folder_of_code(tmp_path: Path, canary: Path) -> None:
    """Also when it is the current one: libraries try to import many packages that are not installed. Only what an option names is code."""
    data = tmp_path / "data"
    (data / "deeper").mkdir(parents=True)
    (data / "a.jsonl").write_text('{"response": "\\\\boxed{x+1}", "answer": "1+x"}\n')
    for name in ("gmpy2", "gmpy", "pytz", "tabulate", "sklearn", "trio", "peft", "kernels", "flash_attn", "sentencepiece"):
        (data / f"{name}.py").write_text(code(canary))
    done = grade(data)
    assert done.returncode == 0 and "correct 1 100.00%" in " ".join(done.stdout.split()), done.stderr
    (data / "deeper" / "mine.py").write_text(code(canary) + "def reward(response, answer):\n    return 1.0\n")
    kinds = ["mine.reward", ".deeper.mine.reward", "../data/deeper/mine.reward", "data.deeper.mine.reward"]
    done = grade(data, *kinds, program=EACH)
    assert done.stdout.split() == ["2"] * 4 and "Traceback" not in done.stderr, done.stderr
    assert all(kind in line for kind, line in zip(kinds, done.stderr.splitlines(), strict=True)), done.stderr
